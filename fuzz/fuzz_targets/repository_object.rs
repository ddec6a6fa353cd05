//! Any bytes as an object of a repository. The first byte chooses which.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = vmtwin_repository::fuzzing::object(bytes);
});
