//! Rebuilds the crate when a migration changes: `sqlx::migrate!` embeds the folder but a stable
//! compiler does not watch it.

fn main() {
    println!("cargo:rerun-if-changed=migrations");
}
