//! What the service keeps: `s3s-fs`, with two things of its listings put right.
//!
//! `s3s-fs` takes the empty `delimiter` that restic sends for one, and lists nothing below it; and
//! it says that it encodes keys when it is asked to, and does not.

use std::path::Path;

use s3s::dto::*;
use s3s::{S3, S3Request, S3Response, S3Result};
use s3s_fs::FileSystem;

/// Buckets as folders, objects as files.
#[derive(Debug)]
pub(super) struct Files(FileSystem);

impl Files {
    pub(super) fn new(folder: &Path) -> Files {
        Files(FileSystem::new(folder).expect("opening the service's folder"))
    }
}

/// Methods that are `s3s-fs`'s own; all others are not implemented.
macro_rules! files {
    ($($name:ident $input:ident $output:ident,)*) => {
        #[async_trait::async_trait]
        impl S3 for Files {
            $(async fn $name(&self, req: S3Request<$input>) -> S3Result<S3Response<$output>> {
                self.0.$name(req).await
            })*

            async fn list_objects_v2(
                &self,
                mut req: S3Request<ListObjectsV2Input>,
            ) -> S3Result<S3Response<ListObjectsV2Output>> {
                req.input.delimiter = req.input.delimiter.filter(|text| !text.is_empty());
                req.input.encoding_type = None;
                self.0.list_objects_v2(req).await
            }
        }
    };
}

files! {
    create_bucket CreateBucketInput CreateBucketOutput,
    delete_object DeleteObjectInput DeleteObjectOutput,
    delete_objects DeleteObjectsInput DeleteObjectsOutput,
    get_bucket_location GetBucketLocationInput GetBucketLocationOutput,
    get_object GetObjectInput GetObjectOutput,
    head_bucket HeadBucketInput HeadBucketOutput,
    head_object HeadObjectInput HeadObjectOutput,
    put_object PutObjectInput PutObjectOutput,
}
