//! What the device has of ours while work is posted, and what becomes of it afterwards.

use std::sync::Arc;

use super::landing::Landing;
use super::mail::Letter;
use crate::transport::messages::Outbox;
use crate::verbs::{LocalMemory, RegisteredBuffer, WorkError};

/// Memory that is posted.
pub(super) enum Lent {
    /// For what a READ brings.
    Read(Landing),
    /// For a message of the engine.
    Receive(Letter),
    /// With a message of ours; goes back to where it was taken.
    Send(RegisteredBuffer, Arc<Outbox>),
}

impl Lent {
    /// The device is done with it.
    pub(super) fn completed(self, outcome: Result<usize, WorkError>) {
        match self {
            Self::Read(landing) => landing.arrived(outcome.map(drop)),
            Self::Receive(letter) => letter.arrived(outcome),
            Self::Send(slot, outbox) => outbox.give_back(slot),
        }
    }
}

// SAFETY: each kind is memory that is registered and has this one owner, and says where it is.
unsafe impl LocalMemory for Lent {
    fn start(&self) -> *mut u8 {
        match self {
            Self::Read(landing) => landing.start(),
            Self::Receive(letter) => letter.slot.start(),
            Self::Send(slot, _) => LocalMemory::start(slot),
        }
    }

    fn length(&self) -> usize {
        match self {
            Self::Read(landing) => landing.length(),
            Self::Receive(letter) => letter.slot.length(),
            Self::Send(slot, _) => LocalMemory::length(slot),
        }
    }

    fn lkey(&self) -> u32 {
        match self {
            Self::Read(landing) => landing.lkey(),
            Self::Receive(letter) => letter.slot.lkey(),
            Self::Send(slot, _) => slot.lkey(),
        }
    }
}
