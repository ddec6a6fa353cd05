//! Any bytes as what an NBD client says to the server: handshake and requests.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = vmtwin_nbd::fuzzing::serve(bytes);
});
