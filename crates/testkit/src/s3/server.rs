//! The service: `s3s` over a folder, on a thread of its own.

use std::path::PathBuf;

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

use super::files::Files;
use crate::process::Workdir;

/// An S3 service with one user. It ends with this value.
pub struct S3Server {
    work: Workdir,
    port: u16,
    /// Dropped first: no request may outlive the folder.
    runtime: Option<Runtime>,
}

impl S3Server {
    /// Id of the user's access key.
    pub const ACCESS_KEY: &str = "AKIDTESTTESTTEST";
    /// The user's secret.
    pub const SECRET_KEY: &str = "testsecret/testsecret+testsecret";

    /// Starts it on a free port of the loopback interface; there are no buckets.
    pub fn start() -> S3Server {
        let work = Workdir::new();
        let folder = work.join("s3");
        std::fs::create_dir(&folder).expect("making the service's folder");
        let mut service = S3ServiceBuilder::new(Files::new(&folder));
        service.set_auth(SimpleAuth::from_single(Self::ACCESS_KEY, Self::SECRET_KEY));
        let service = service.build();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("starting the service's threads");
        let listener = runtime.block_on(TcpListener::bind(("127.0.0.1", 0)));
        let listener = listener.expect("binding a loopback port");
        let port = listener.local_addr().expect("the port").port();
        runtime.spawn(async move {
            let http = Builder::new(TokioExecutor::new());
            while let Ok((socket, _)) = listener.accept().await {
                let served = http.serve_connection(TokioIo::new(socket), service.clone());
                tokio::spawn(served.into_owned());
            }
        });
        S3Server {
            work,
            port,
            runtime: Some(runtime),
        }
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its address as a URL.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The folder that holds a bucket's objects as files.
    pub fn bucket_dir(&self, bucket: &str) -> PathBuf {
        self.work.join("s3").join(bucket)
    }

    /// The user's keys as the variables that programs for S3 take them from.
    pub fn keys() -> Vec<(&'static str, String)> {
        vec![
            ("AWS_ACCESS_KEY_ID", Self::ACCESS_KEY.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", Self::SECRET_KEY.to_owned()),
        ]
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
