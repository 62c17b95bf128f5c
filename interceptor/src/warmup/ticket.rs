//! Read tickets: a user's proof that he may read a file.
//!
//! A mount gives a ticket as the value of [`READ_TICKET_XATTR`]. The kernel lets a process read an attribute of the `user.` name
//! space only if it may read the file itself, by mode, group and access control list (`xattr_permission`); and only a process that
//! has come to the file, through directories that it may search, can ask for the attribute. So the daemon decides nothing:
//! who has a ticket has been let through by the kernel.
//!
//! ```text
//!  ticket = base64url(payload, HMAC-SHA256(key, payload))       key: random, made anew by each daemon
//!  payload = node, serial, user, is_owner, seconds              little endian; not secret, only authentic
//! ```
//!
//! A node number is used again for other files, `serial` is not. A ticket is good for [`TICKET_LIFETIME`], like an open
//! descriptor whatever becomes of the permissions meanwhile.

use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac::{self, HMAC_SHA256};

use crate::namespace::NodeId;

/// An attribute that every regular file of a mount has, although no list shows it: a ticket of the user who asks for it.
pub const READ_TICKET_XATTR: &str = "user.interceptor.read_ticket";

/// How long a ticket is accepted. A client takes it immediately before its request, which it may repeat for half as long.
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
    /// Tells the file from others that had or will have the number.
    pub serial: u64,
}

/// What a ticket proves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadTicket {
    /// The file that may be read.
    pub file: NodeInstance,
    /// The user who may read it.
    pub user: u32,
    /// Whether the file is that user's.
    pub is_owner: bool,
}

/// Why a ticket proves nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTicket {
    /// This daemon has not issued it.
    #[error("a ticket is not of this mount: the value of {READ_TICKET_XATTR} of each file is expected")]
    Forged,
    /// It was good once.
    #[error("a ticket is older than {} s", TICKET_LIFETIME.as_secs())]
    Expired,
}

/// Issues the tickets of a mount and recognizes them.
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
    /// The text of a ticket, for the user whom it names only.
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

    /// What a ticket proves.
    ///
    /// # Errors
    /// If it proves nothing.
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

/// The rest of a payload.
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
    fn a_ticket_is_good_for_a_while_at_the_daemon_that_issued_it() {
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
        fn a_ticket_with_a_bit_changed_or_cut_off_is_none(place in 0..TICKET_LEN, bit in 0..6u32, cut: bool) {
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
        fn no_text_is_a_ticket(text in ".{0,120}") {
            prop_assert_eq!(TicketIssuer::default().verify(&text), Err(InvalidTicket::Forged));
        }
    }
}
