//! The token that a volume server asks for before a read, if `jwt.signing.read.key` is set.
//!
//! It is a JSON Web Token signed with HMAC-SHA256. Its claims name one file id and, usually, the
//! second at which it expires. A client with the key signs its own tokens, one for each request.
//! An engine asks for the same tokens as the volume server beside it.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use serde_json::{Map, Value};

use crate::FileId;

/// Signs tokens that allow reading one needle each.
pub struct ReadSigner {
    key: hmac::Key,
    lifetime_s: u64,
}

impl ReadSigner {
    /// A signer with the cluster's key. Its tokens expire after `lifetime_s` seconds, or never if
    /// that is 0.
    pub fn new(key: &[u8], lifetime_s: u64) -> Self {
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, key), lifetime_s }
    }

    /// A token that allows reading `fid` from now on.
    pub fn token(&self, fid: FileId) -> String {
        self.token_at(fid, SystemTime::now())
    }

    fn token_at(&self, fid: FileId, now: SystemTime) -> String {
        // A file id has only digits and a comma, so the claims need no escaping.
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

/// Verifies tokens that allow reading one needle each.
pub struct ReadVerifier {
    key: hmac::Key,
}

/// Why a token does not allow a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It is no signed token, or its algorithm is not HMAC-SHA256.
    #[error("not a token signed with HMAC-SHA256")]
    Form,
    /// It was signed with another key.
    #[error("signed with another key")]
    Signature,
    /// It has expired, or is not valid yet.
    #[error("not valid at this time")]
    Time,
    /// It is for another needle.
    #[error("for another needle")]
    Needle,
}

impl ReadVerifier {
    /// A verifier with the cluster's key.
    pub fn new(key: &[u8]) -> Self {
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, key) }
    }

    /// Checks that `token` allows reading `fid` now.
    ///
    /// # Errors
    /// See [`TokenError`].
    pub fn verify(&self, token: &[u8], fid: FileId) -> Result<(), TokenError> {
        self.verify_at(token, fid, SystemTime::now())
    }

    fn verify_at(&self, token: &[u8], fid: FileId, now: SystemTime) -> Result<(), TokenError> {
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Form);
        let object = |part: &str| -> Result<Map<String, Value>, TokenError> {
            serde_json::from_slice(&decode(part)?).map_err(|_| TokenError::Form)
        };
        let token = std::str::from_utf8(token).map_err(|_| TokenError::Form)?;
        let (signed, signature) = token.rsplit_once('.').ok_or(TokenError::Form)?;
        let (header, claims) = signed.split_once('.').ok_or(TokenError::Form)?;
        // An attacker may write the header: it may only name the one algorithm, and has no other
        // effect.
        if object(header)?.get("alg").and_then(Value::as_str) != Some("HS256") {
            return Err(TokenError::Form);
        }
        hmac::verify(&self.key, signed.as_bytes(), &decode(signature)?).map_err(|_| TokenError::Signature)?;
        let claims = object(claims)?;
        let now = now.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
        let time = |name: &str| match claims.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => value.as_f64().map(Some).ok_or(TokenError::Form),
        };
        if time("exp")?.is_some_and(|end| now >= end) || time("nbf")?.is_some_and(|begin| now < begin) {
            return Err(TokenError::Time);
        }
        let named = claims.get("fid").and_then(Value::as_str).ok_or(TokenError::Form)?;
        if named.parse() == Ok(fid) { Ok(()) } else { Err(TokenError::Needle) }
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

    #[test]
    fn a_verifier_accepts_only_tokens_of_the_signer() {
        let now = UNIX_EPOCH + Duration::from_secs(1000);
        let later = UNIX_EPOCH + Duration::from_secs(1060);
        let signer = ReadSigner::new(b"secret", 60);
        let token = signer.token_at(FID, now);
        let verifier = ReadVerifier::new(b"secret");
        let verify = |token: &str, fid, now| verifier.verify_at(token.as_bytes(), fid, now);
        assert_eq!(verify(&token, FID, now), Ok(()));
        assert_eq!(verify(&token, FID, later), Err(TokenError::Time));
        assert_eq!(verify(&token, FileId { key: 2, ..FID }, now), Err(TokenError::Needle));
        let other = ReadVerifier::new(b"guessed").verify_at(token.as_bytes(), FID, now);
        assert_eq!(other, Err(TokenError::Signature));
        let for_ever = ReadSigner::new(b"secret", 0).token_at(FID, now);
        assert_eq!(verify(&for_ever, FID, later), Ok(()));

        let (signed, signature) = token.rsplit_once('.').unwrap();
        let (_, claims) = signed.split_once('.').unwrap();
        let none = URL_SAFE_NO_PAD.encode(r#"{"alg":"none","typ":"JWT"}"#);
        for forged in
            [format!("{none}.{claims}."), format!("{none}.{claims}.{signature}"), String::new(), "..".into()]
        {
            assert_eq!(verify(&forged, FID, now), Err(TokenError::Form), "{forged}");
        }
        let longer = URL_SAFE_NO_PAD.encode(r#"{"fid":"3,01637037d6"}"#);
        let header = token.split_once('.').unwrap().0;
        assert_eq!(verify(&format!("{header}.{longer}.{signature}"), FID, now), Err(TokenError::Signature));
    }
}
