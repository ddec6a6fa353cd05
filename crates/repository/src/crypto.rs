//! Sealing: AES-256-CTR and Poly1305-AES, as restic does it.
//!
//! A sealed object is `nonce (16) ‖ ciphertext ‖ tag (16)`. The tag is Poly1305 over the
//! ciphertext with the one-time key `r ‖ AES-128_k(nonce)`; Poly1305 itself masks `r`.
//! AES of one block is taken from counter mode over a zero block, with the nonce as counter.

use aws_lc_rs::cipher::{
    AES_128, AES_256, DecryptingKey, DecryptionContext, EncryptingKey, EncryptionContext,
    UnboundCipherKey,
};
use aws_lc_rs::constant_time;
use aws_lc_rs::iv::FixedLength;
use poly1305::Poly1305;
use poly1305::universal_hash::KeyInit;
use zeroize::Zeroize;

/// Bytes before the ciphertext.
pub(crate) const NONCE_BYTES: usize = 16;
/// Bytes after the ciphertext.
pub(crate) const TAG_BYTES: usize = 16;
/// What sealing adds to a length.
pub(crate) const SEAL_BYTES: usize = NONCE_BYTES + TAG_BYTES;

/// The bytes are not what a holder of the key sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SealError {
    #[error("shorter than a sealed object")]
    TooShort,
    #[error("the authentication tag does not match")]
    Tag,
    #[error("the cipher or the random source failed")]
    Cipher,
}

/// The keys that seal and open everything in one repository.
pub(crate) struct Sealer {
    encrypting: EncryptingKey,
    decrypting: DecryptingKey,
    mac: EncryptingKey,
    r: [u8; 16],
}

impl Sealer {
    /// Takes the AES-256 key and the two halves of the Poly1305-AES key.
    pub(crate) fn new(encrypt: &[u8; 32], k: &[u8; 16], r: &[u8; 16]) -> Result<Self, SealError> {
        let aes256 = || UnboundCipherKey::new(&AES_256, encrypt).map_err(|_| SealError::Cipher);
        let aes128 = UnboundCipherKey::new(&AES_128, k).map_err(|_| SealError::Cipher)?;
        Ok(Self {
            encrypting: EncryptingKey::ctr(aes256()?).map_err(|_| SealError::Cipher)?,
            decrypting: DecryptingKey::ctr(aes256()?).map_err(|_| SealError::Cipher)?,
            mac: EncryptingKey::ctr(aes128).map_err(|_| SealError::Cipher)?,
            r: *r,
        })
    }

    /// Seals in place: `buf` holds room for the nonce, the plain bytes, and room for the tag.
    pub(crate) fn seal_in_place(&self, buf: &mut [u8]) -> Result<(), SealError> {
        if buf.len() < SEAL_BYTES {
            return Err(SealError::TooShort);
        }
        let (head, rest) = buf.split_at_mut(NONCE_BYTES);
        let (body, tag_out) = rest.split_at_mut(rest.len() - TAG_BYTES);
        let mut nonce = [0; NONCE_BYTES];
        aws_lc_rs::rand::fill(&mut nonce).map_err(|_| SealError::Cipher)?;
        head.copy_from_slice(&nonce);
        let context = EncryptionContext::Iv128(FixedLength::from(nonce));
        self.encrypting
            .less_safe_encrypt(body, context)
            .map_err(|_| SealError::Cipher)?;
        tag_out.copy_from_slice(&self.tag(&nonce, body)?);
        Ok(())
    }

    /// Seals a copy of `plain`.
    pub(crate) fn seal(&self, plain: &[u8]) -> Result<Vec<u8>, SealError> {
        let mut buf = vec![0; plain.len() + SEAL_BYTES];
        buf[NONCE_BYTES..NONCE_BYTES + plain.len()].copy_from_slice(plain);
        self.seal_in_place(&mut buf)?;
        Ok(buf)
    }

    /// Checks the tag, then decrypts in place and gives the plain part of `sealed`.
    pub(crate) fn open_in_place<'a>(&self, sealed: &'a mut [u8]) -> Result<&'a [u8], SealError> {
        if sealed.len() < SEAL_BYTES {
            return Err(SealError::TooShort);
        }
        let (head, rest) = sealed.split_at_mut(NONCE_BYTES);
        let (body, tag) = rest.split_at_mut(rest.len() - TAG_BYTES);
        let mut nonce = [0; NONCE_BYTES];
        nonce.copy_from_slice(head);
        let expected = self.tag(&nonce, body)?;
        constant_time::verify_slices_are_equal(&expected, tag).map_err(|_| SealError::Tag)?;
        let context = DecryptionContext::Iv128(FixedLength::from(nonce));
        self.decrypting
            .decrypt(body, context)
            .map_err(|_| SealError::Cipher)?;
        Ok(body)
    }

    fn tag(&self, nonce: &[u8; NONCE_BYTES], body: &[u8]) -> Result<[u8; TAG_BYTES], SealError> {
        let mut key = [0; 32];
        key[..16].copy_from_slice(&self.r);
        let context = EncryptionContext::Iv128(FixedLength::from(*nonce));
        self.mac
            .less_safe_encrypt(&mut key[16..], context)
            .map_err(|_| SealError::Cipher)?;
        let tag = Poly1305::new(&key.into()).compute_unpadded(body);
        key.zeroize();
        Ok(tag.into())
    }
}

impl Drop for Sealer {
    fn drop(&mut self) {
        self.r.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sealer() -> Sealer {
        Sealer::new(&[1; 32], &[2; 16], &[3; 16]).unwrap()
    }

    proptest! {
        #[test]
        fn round_trip_and_every_flip_is_seen(
            data in proptest::collection::vec(any::<u8>(), 0..300), at in any::<usize>(), bit in 0..8u8
        ) {
            let mut sealed = sealer().seal(&data).unwrap();
            let mut copy = sealed.clone();
            prop_assert_eq!(sealer().open_in_place(&mut copy).unwrap(), &data[..]);
            let at = at % sealed.len();
            sealed[at] ^= 1u8 << bit;
            prop_assert_eq!(sealer().open_in_place(&mut sealed), Err(SealError::Tag));
        }

        #[test]
        fn arbitrary_bytes_never_open(mut data in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(sealer().open_in_place(&mut data).is_err());
        }
    }

    /// Values of restic's own test suite for Poly1305-AES (an empty message is covered by r = 0).
    #[test]
    fn tag_of_the_poly1305_aes_paper() {
        let k = [
            0xec, 0x07, 0x4c, 0x83, 0x55, 0x80, 0x74, 0x17, 0x01, 0x42, 0x5b, 0x62, 0x32, 0x35,
            0xad, 0xd6,
        ];
        let r = [
            0x85, 0x1f, 0xc4, 0x0c, 0x34, 0x67, 0xac, 0x0b, 0xe0, 0x5c, 0xc2, 0x04, 0x04, 0xf3,
            0xf7, 0x00,
        ];
        let nonce = [
            0xfb, 0x44, 0x73, 0x50, 0xc4, 0xe8, 0x68, 0xc5, 0x2a, 0xc3, 0x27, 0x5c, 0xf9, 0xd4,
            0x32, 0x7e,
        ];
        let tag = [
            0xf4, 0xc6, 0x33, 0xc3, 0x04, 0x4f, 0xc1, 0x45, 0xf8, 0x4f, 0x33, 0x5c, 0xb8, 0x19,
            0x53, 0xde,
        ];
        let sealer = Sealer::new(&[0; 32], &k, &r).unwrap();
        assert_eq!(sealer.tag(&nonce, &[0xf3, 0xf6]).unwrap(), tag);
    }
}
