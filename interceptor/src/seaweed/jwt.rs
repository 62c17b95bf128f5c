//! The token that a volume server asks for before a read, where `jwt.signing.read.key` is set.
//!
//! A JSON Web Token signed with HMAC-SHA256, whose claims name one file id and, usually, the second after which it is
//! void. Whoever holds the key makes tokens for itself, so one is minted for each request.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rdma_engine::FileId;
use ring::hmac;

/// Makes tokens that allow reading one needle each.
pub struct ReadSigner {
    key: hmac::Key,
    lifetime_s: u64,
}

impl ReadSigner {
    /// A signer with the cluster's key; its tokens are void after `lifetime_s` seconds, or never if that is 0.
    pub fn new(key: &[u8], lifetime_s: u64) -> Self {
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, key), lifetime_s }
    }

    /// A token that allows reading `fid` from now on.
    pub fn token(&self, fid: FileId) -> String {
        self.token_at(fid, SystemTime::now())
    }

    fn token_at(&self, fid: FileId, now: SystemTime) -> String {
        // A file id is digits and a comma, so nothing in the claims needs escaping.
        let claims = match self.lifetime_s {
            0 => format!(r#"{{"fid":"{fid}"}}"#),
            lifetime => {
                let now = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
                format!(r#"{{"fid":"{fid}","exp":{}}}"#, now.saturating_add(lifetime))
            }
        };
        let mut token = URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256","typ":"JWT"}"#);
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(claims, &mut token);
        let signature = hmac::sign(&self.key, token.as_bytes());
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut token);
        token
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const FID: FileId = FileId { volume: 3, key: 1, cookie: 0x6370_37d6 };

    fn parts(token: &str) -> (String, String, Vec<u8>) {
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).unwrap();
        let mut parts = token.split('.');
        let mut next = || decode(parts.next().unwrap());
        let (header, claims) = (next(), next());
        (String::from_utf8(header).unwrap(), String::from_utf8(claims).unwrap(), next())
    }

    #[test]
    fn claims_name_the_needle_and_the_end_of_validity() {
        let signer = ReadSigner::new(b"secret", 60);
        let token = signer.token_at(FID, UNIX_EPOCH + Duration::from_secs(1000));
        let (header, claims, _) = parts(&token);
        assert_eq!(header, r#"{"alg":"HS256","typ":"JWT"}"#);
        assert_eq!(claims, r#"{"fid":"3,01637037d6","exp":1060}"#);
    }

    #[test]
    fn a_lifetime_of_zero_leaves_the_expiry_out() {
        let (_, claims, _) = parts(&ReadSigner::new(b"secret", 0).token(FID));
        assert_eq!(claims, r#"{"fid":"3,01637037d6"}"#);
    }

    #[test]
    fn the_signature_verifies_with_the_key_alone() {
        let token = ReadSigner::new(b"secret", 10).token(FID);
        let (signed, _) = token.rsplit_once('.').unwrap();
        let (_, _, signature) = parts(&token);
        let key = |bytes: &[u8]| hmac::Key::new(hmac::HMAC_SHA256, bytes);
        assert!(hmac::verify(&key(b"secret"), signed.as_bytes(), &signature).is_ok());
        assert!(hmac::verify(&key(b"other"), signed.as_bytes(), &signature).is_err());
    }
}
