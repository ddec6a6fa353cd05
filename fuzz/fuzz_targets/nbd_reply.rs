//! Any bytes as what an NBD server says. The first byte chooses between handshake and replies.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, said)) = bytes.split_first() else {
        return;
    };
    let _ = match kind & 1 {
        0 => vmtwin_nbd::fuzzing::handshake(said),
        _ => vmtwin_nbd::fuzzing::reply(said),
    };
});
