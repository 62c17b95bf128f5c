//! How the two ends of a connection prove to each other that they know a secret of the cluster's
//! `security.toml`.
//!
//! Each end names 32 random bytes, a nonce. A proof is an HMAC-SHA256 over the role of the end
//! that gives it, both nonces, the engine's instance and the channel: the address, or the name of
//! the Unix socket, at which the engine was reached. So a proof is good for one connection, cannot
//! be sent back as the other end's, and cannot be passed on from an engine that was reached at
//! another address. The engine proves itself first; a client tells it nothing before.
//!
//! The HMAC's key is derived from the secret, so that no proof is a read token and no read token a
//! proof. Deriving it is slow on purpose: a peer that guesses secrets pays for each guess.

use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU32;

use parking_lot::RwLock;
use ring::{hmac, pbkdf2};

/// Bytes of a nonce, and of a proof.
pub(crate) const PROOF_SIZE: usize = 32;

/// Random bytes that one end draws for one connection.
pub(crate) type Nonce = [u8; PROOF_SIZE];

/// The proof that an end sends.
pub(crate) type Proof = [u8; PROOF_SIZE];

/// Sets the derived key apart from every other use of the secret. A read token's signature is over
/// base64 text, which has no zero byte.
const DERIVATION_SALT: &[u8] = b"rdma-engine\0proof of identity\0";

/// Some 30 ms of one processor, once for each program that starts.
const DERIVATION_ROUNDS: NonZeroU32 = NonZeroU32::new(100_000).unwrap();

/// The key of proofs, derived from a secret of `security.toml`.
pub struct ProofKey(RwLock<hmac::Key>);

/// Which end of a connection gives a proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Engine,
    Client,
}

/// The address at which a client reached an engine, as both of them see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Channel {
    /// The engine's end of a TCP connection.
    Tcp(SocketAddr),
    /// The name of a Unix socket in the abstract namespace.
    Unix(Vec<u8>),
}

/// The data of a connection that both ends know.
#[derive(Debug, Clone)]
pub(crate) struct Exchange<'a> {
    pub(crate) client: Nonce,
    pub(crate) engine: Nonce,
    pub(crate) instance: u128,
    pub(crate) channel: &'a Channel,
}

impl ProofKey {
    /// The key that belongs to `secret`.
    pub fn new(secret: &[u8]) -> Self {
        let mut key = [0; PROOF_SIZE];
        let algorithm = pbkdf2::PBKDF2_HMAC_SHA256;
        pbkdf2::derive(algorithm, DERIVATION_ROUNDS, DERIVATION_SALT, secret, &mut key);
        Self(RwLock::new(hmac::Key::new(hmac::HMAC_SHA256, &key)))
    }

    /// From now on proves what `newer` does.
    pub fn renew(&self, newer: &Self) {
        let key = newer.0.read().clone();
        *self.0.write() = key;
    }

    /// The proof of the end with `role`.
    pub(crate) fn prove(&self, role: Role, exchange: &Exchange<'_>) -> Proof {
        let tag = hmac::sign(&self.0.read(), &exchange.statement(role));
        tag.as_ref().try_into().expect("an HMAC-SHA256 has 32 bytes")
    }

    /// Whether `proof` is that of the end with `role`. Takes the same time, whichever byte is
    /// wrong.
    pub(crate) fn is_proved(&self, role: Role, exchange: &Exchange<'_>, proof: &Proof) -> bool {
        hmac::verify(&self.0.read(), &exchange.statement(role), proof).is_ok()
    }
}

impl fmt::Debug for ProofKey {
    /// Never the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ProofKey(…)")
    }
}

impl Exchange<'_> {
    /// The bytes that are signed. All fields but the last have a fixed size, so no two exchanges
    /// have the same statement.
    fn statement(&self, role: Role) -> Vec<u8> {
        let mut statement = Vec::with_capacity(128);
        statement.push(match role {
            Role::Engine => b'E',
            Role::Client => b'C',
        });
        statement.extend_from_slice(&self.client);
        statement.extend_from_slice(&self.engine);
        statement.extend_from_slice(&self.instance.to_be_bytes());
        match self.channel {
            Channel::Tcp(address) => {
                statement.push(b'T');
                statement.extend_from_slice(&address.port().to_be_bytes());
                // An engine that listens on [::] sees IPv4 clients at mapped addresses.
                match address.ip().to_canonical() {
                    std::net::IpAddr::V4(ip) => statement.extend_from_slice(&ip.octets()),
                    std::net::IpAddr::V6(ip) => statement.extend_from_slice(&ip.octets()),
                }
            }
            Channel::Unix(name) => {
                statement.push(b'U');
                statement.extend_from_slice(name);
            }
        }
        statement
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::LazyLock;

    static KEY: LazyLock<ProofKey> = LazyLock::new(|| ProofKey::new(b"secret"));

    fn tcp(text: &str) -> Channel {
        Channel::Tcp(text.parse().unwrap())
    }

    #[test]
    fn a_proof_is_valid_for_one_key_role_connection_and_address() {
        let channel = tcp("10.0.0.1:18515");
        let exchange = Exchange { client: [1; 32], engine: [2; 32], instance: 3, channel: &channel };
        let proof = KEY.prove(Role::Engine, &exchange);
        assert!(KEY.is_proved(Role::Engine, &exchange, &proof));

        assert!(!KEY.is_proved(Role::Client, &exchange, &proof), "not sent back as the client's");
        let guessed = ProofKey::new(b"guessed");
        assert!(!guessed.is_proved(Role::Engine, &exchange, &proof));
        for other in ["10.0.0.2:18515", "10.0.0.1:18516", "[::1]:18515"].map(tcp) {
            let relayed = Exchange { channel: &other, ..exchange.clone() };
            assert!(!KEY.is_proved(Role::Engine, &relayed, &proof), "{other:?}");
        }
        let unix = Channel::Unix(b"rdma-engine-1".to_vec());
        for other in [
            Exchange { client: [9; 32], ..exchange.clone() },
            Exchange { engine: [9; 32], ..exchange.clone() },
            Exchange { client: [2; 32], engine: [1; 32], ..exchange.clone() },
            Exchange { instance: 4, ..exchange.clone() },
            Exchange { channel: &unix, ..exchange.clone() },
        ] {
            assert!(!KEY.is_proved(Role::Engine, &other, &proof), "{other:?}");
        }
        let mut bent = proof;
        bent[31] ^= 1;
        assert!(!KEY.is_proved(Role::Engine, &exchange, &bent));
    }

    #[test]
    fn an_address_is_the_same_however_its_socket_writes_it() {
        let (plain, mapped) = (tcp("10.0.0.1:7"), tcp("[::ffff:10.0.0.1]:7"));
        let at = |channel| Exchange { client: [1; 32], engine: [2; 32], instance: 3, channel };
        let proof = KEY.prove(Role::Engine, &at(&mapped));
        assert!(KEY.is_proved(Role::Engine, &at(&plain), &proof));
    }

    #[test]
    fn a_proof_is_no_signature_of_the_secret_itself() {
        let channel = tcp("10.0.0.1:18515");
        let exchange = Exchange { client: [1; 32], engine: [2; 32], instance: 3, channel: &channel };
        let proof = KEY.prove(Role::Engine, &exchange);
        let raw = hmac::Key::new(hmac::HMAC_SHA256, b"secret");
        assert!(hmac::verify(&raw, &exchange.statement(Role::Engine), &proof).is_err());
        assert_eq!(format!("{:?}", *KEY), "ProofKey(…)");
    }
}
