//! Read tickets: a user's proof that he may read a file.
//!
//! A ticket is the value of the extended attribute [`READ_TICKET_XATTR`]. The kernel lets a
//! process read a `user.` attribute only if it may read the file by mode, group and access
//! control list (`xattr_permission`), and only after a path walk through directories that it may
//! search. The daemon thus decides nothing: the kernel has checked every holder of a ticket.
//!
//! ```text
//!  ticket = base64url(payload, HMAC-SHA256(key, payload))   key: random for each daemon
//!  payload = node, serial, user, is_owner, seconds          little endian; authentic, not secret
//! ```
//!
//! Node numbers are reused for other files, serials are not. A ticket is valid for
//! [`TICKET_LIFETIME`] even if the permissions change meanwhile, as an open descriptor is.

use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac::{self, HMAC_SHA256};

use crate::namespace::NodeId;

/// The attribute of every regular file of a mount whose value is a ticket of the calling user.
/// `listxattr` does not show it.
pub const READ_TICKET_XATTR: &str = "user.interceptor.read_ticket";

/// The time for which a ticket is accepted. A client gets it immediately before its request,
/// which it may repeat for half of that time.
pub const TICKET_LIFETIME: Duration = Duration::from_secs(60);

const PAYLOAD_LEN: usize = 29;
const TAG_LEN: usize = 32;

/// The length of a ticket's text.
pub const TICKET_LEN: usize = (PAYLOAD_LEN + TAG_LEN) * 4 / 3 + 1;

/// One use of a node number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeInstance {
    /// The number (`st_ino`).
    pub node: NodeId,
    /// Distinguishes the file from earlier and later ones with the same number.
    pub serial: u64,
}

/// The content of a ticket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadTicket {
    /// The file that may be read.
    pub file: NodeInstance,
    /// The user who may read it.
    pub user: u32,
    /// Whether that user owns the file.
    pub is_owner: bool,
}

/// Why a ticket is rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTicket {
    /// This daemon did not issue it.
    #[error("a ticket is not of this mount: the value of {READ_TICKET_XATTR} of each file is expected")]
    Forged,
    /// It is older than [`TICKET_LIFETIME`].
    #[error("a ticket is older than {} s", TICKET_LIFETIME.as_secs())]
    Expired,
}

/// Issues and verifies the tickets of a mount.
#[derive(Debug)]
pub struct TicketIssuer {
    key: hmac::Key,
    started: Instant,
}

impl Default for TicketIssuer {
    fn default() -> Self {
        Self { key: hmac::Key::new(HMAC_SHA256, &rand::random::<[u8; 32]>()), started: Instant::now() }
    }
}

impl TicketIssuer {
    /// The text of a ticket. Must be given to the user that it names only.
    pub fn issue(&self, ticket: &ReadTicket) -> String {
        self.issue_at(ticket, self.started.elapsed())
    }

    fn issue_at(&self, ticket: &ReadTicket, now: Duration) -> String {
        let ReadTicket { file: NodeInstance { node, serial }, user, is_owner } = ticket;
        let mut bytes = Vec::with_capacity(PAYLOAD_LEN + TAG_LEN);
        bytes.extend(node.to_le_bytes());
        bytes.extend(serial.to_le_bytes());
        bytes.extend(user.to_le_bytes());
        bytes.push(u8::from(*is_owner));
        bytes.extend(now.as_secs().to_le_bytes());
        let tag = hmac::sign(&self.key, &bytes);
        bytes.extend(tag.as_ref());
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// The content of a ticket.
    ///
    /// # Errors
    /// If this daemon did not issue it, or it has expired.
    pub fn verify(&self, text: &str) -> Result<ReadTicket, InvalidTicket> {
        self.verify_at(text, self.started.elapsed())
    }

    fn verify_at(&self, text: &str, now: Duration) -> Result<ReadTicket, InvalidTicket> {
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| InvalidTicket::Forged)?;
        let (payload, tag) = bytes.split_at_checked(PAYLOAD_LEN).ok_or(InvalidTicket::Forged)?;
        hmac::verify(&self.key, payload, tag).map_err(|_| InvalidTicket::Forged)?;
        let mut fields = Fields(payload);
        let file = NodeInstance {
            node: u64::from_le_bytes(fields.next()?),
            serial: u64::from_le_bytes(fields.next()?),
        };
        let user = u32::from_le_bytes(fields.next()?);
        let [is_owner] = fields.next()?;
        let issued = Duration::from_secs(u64::from_le_bytes(fields.next()?));
        if now.saturating_sub(issued) > TICKET_LIFETIME {
            return Err(InvalidTicket::Expired);
        }
        Ok(ReadTicket { file, user, is_owner: is_owner != 0 })
    }
}

/// The fields of a payload that are not decoded yet.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn next<const N: usize>(&mut self) -> Result<[u8; N], InvalidTicket> {
        let (field, rest) = self.0.split_first_chunk().ok_or(InvalidTicket::Forged)?;
        self.0 = rest;
        Ok(*field)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TICKET: ReadTicket =
        ReadTicket { file: NodeInstance { node: 77, serial: 5 }, user: 1000, is_owner: true };

    #[test]
    fn a_ticket_is_valid_for_its_lifetime_at_its_daemon() {
        let issuer = TicketIssuer::default();
        let text = issuer.issue(&TICKET);
        assert_eq!(text.len(), TICKET_LEN);
        assert_eq!(issuer.verify(&text), Ok(TICKET));
        assert_eq!(TicketIssuer::default().verify(&text), Err(InvalidTicket::Forged), "another daemon");
        let issued = Duration::from_secs(100);
        let text = issuer.issue_at(&TICKET, issued);
        assert_eq!(issuer.verify_at(&text, issued + TICKET_LIFETIME), Ok(TICKET));
        let late = issued + TICKET_LIFETIME + Duration::from_secs(1);
        assert_eq!(issuer.verify_at(&text, late), Err(InvalidTicket::Expired));
    }

    proptest! {
        #[test]
        fn a_changed_or_truncated_ticket_is_forged(place in 0..TICKET_LEN, bit in 0..6u32, cut: bool) {
            const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
            let issuer = TicketIssuer::default();
            let mut text = issuer.issue(&TICKET).into_bytes();
            let value = DIGITS.iter().position(|digit| *digit == text[place]).unwrap();
            text[place] = DIGITS[value ^ (1 << bit)];
            if cut {
                text.truncate(place);
            }
            let verified = issuer.verify(std::str::from_utf8(&text).unwrap());
            prop_assert_eq!(verified, Err(InvalidTicket::Forged));
        }

        #[test]
        fn arbitrary_text_is_no_ticket(text in ".{0,120}") {
            prop_assert_eq!(TicketIssuer::default().verify(&text), Err(InvalidTicket::Forged));
        }
    }
}
