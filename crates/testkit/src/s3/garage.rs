//! Garage, a distributed S3 service: nodes on loopback ports, each object on all of them.
//!
//! `tools/setup --all` builds it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::cache;
use crate::process::{Workdir, free_port, try_run};

/// Longest wait for nodes to start and to know of one another.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// Its own form of a key's id.
const ACCESS_KEY: &str = "GK0123456789abcdef01234567";
const SECRET_KEY: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
const RPC_SECRET: &str = "ffeeddccbbaa99887766554433221100ffeeddccbbaa99887766554433221100";

/// A cluster with one bucket. It ends with this value.
pub struct Garage {
    nodes: Vec<Node>,
    _work: Workdir,
}

struct Node {
    config: PathBuf,
    port: u16,
    process: Child,
}

impl Garage {
    /// Starts `count` nodes, with as many copies of each object, and makes the bucket.
    pub fn start(count: usize, bucket: &str) -> Garage {
        let program = program();
        let work = Workdir::new();
        let nodes: Vec<Node> = (0..count)
            .map(|number| Node::start(&program, &work.join(format!("node{number}")), count))
            .collect();
        let ids: Vec<String> = nodes.iter().map(Node::id).collect();
        let first = &nodes[0];
        for id in &ids[1..] {
            first.manage(&["node", "connect", id]);
        }
        for id in &ids {
            let name = id.split('@').next().unwrap_or(id);
            first.manage(&["layout", "assign", "-z", "here", "-c", "4G", name]);
        }
        first.manage(&["layout", "apply", "--version", "1"]);
        first.manage(&["bucket", "create", bucket]);
        let import = [
            "key", "import", "--yes", "-n", "test", ACCESS_KEY, SECRET_KEY,
        ];
        first.manage(&import);
        let allow = ["bucket", "allow", "--read", "--write", "--owner"];
        first.manage(&[&allow[..], &[bucket, "--key", ACCESS_KEY]].concat());
        Garage { nodes, _work: work }
    }

    /// The port of a node.
    pub fn port(&self, node: usize) -> u16 {
        self.nodes[node].port
    }

    /// The process id of a node, for a test to kill it.
    pub fn pid(&self, node: usize) -> u32 {
        self.nodes[node].process.id()
    }

    /// Keys and region as the variables that programs for S3 take them from.
    pub fn keys() -> Vec<(&'static str, String)> {
        vec![
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", SECRET_KEY.to_owned()),
            ("AWS_REGION", "garage".to_owned()),
            ("AWS_DEFAULT_REGION", "garage".to_owned()),
        ]
    }
}

fn program() -> PathBuf {
    let program = cache::folder().join("garage/bin/garage");
    assert!(
        program.exists(),
        "no {}: run tools/setup --all",
        program.display()
    );
    program
}

impl Node {
    fn start(program: &Path, folder: &Path, copies: usize) -> Node {
        std::fs::create_dir(folder).expect("making a node's folder");
        let (port, rpc) = (free_port(), free_port());
        let config = folder.join("garage.toml");
        let dir = folder.display();
        let text = format!(
            "metadata_dir = \"{dir}/meta\"\ndata_dir = \"{dir}/data\"\ndb_engine = \"sqlite\"\n\
             replication_factor = {copies}\nrpc_bind_addr = \"127.0.0.1:{rpc}\"\n\
             rpc_public_addr = \"127.0.0.1:{rpc}\"\nrpc_secret = \"{RPC_SECRET}\"\n\
             [s3_api]\ns3_region = \"garage\"\napi_bind_addr = \"127.0.0.1:{port}\"\n\
             root_domain = \".s3.garage.test\"\n"
        );
        std::fs::write(&config, text).expect("writing a node's settings");
        let log = std::fs::File::create(folder.join("log")).expect("making a node's log");
        let process = Command::new(program)
            .args([
                "-c",
                path(&config),
                "--allow-world-readable-secrets=true",
                "server",
            ])
            .env("RUST_LOG", "garage=warn")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("starting garage");
        Node {
            config,
            port,
            process,
        }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(program());
        command.args([
            "-c",
            path(&self.config),
            "--allow-world-readable-secrets=true",
        ]);
        command.args(args);
        command
    }

    /// Key and address, once the node has made its key.
    fn id(&self) -> String {
        let output = run_soon(|| try_run(&mut self.command(&["node", "id", "-q"])));
        let text = String::from_utf8_lossy(&output.stdout);
        text.lines().next().unwrap_or_default().trim().to_owned()
    }

    /// Tells the cluster something; nodes that only just know of one another refuse at first.
    fn manage(&self, args: &[&str]) {
        run_soon(|| try_run(&mut self.command(args)));
    }
}

fn run_soon<T>(mut attempt: impl FnMut() -> anyhow::Result<T>) -> T {
    let end = Instant::now() + START_TIMEOUT;
    loop {
        match attempt() {
            Ok(done) => return done,
            Err(error) => assert!(Instant::now() < end, "{error:#}"),
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
