//! Stands for `rdma` where the program is built without verbs: there is never a fabric, so nothing of this is ever called.

use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use super::admission::StagingShare;
use super::session::{Located, Ticket};
use crate::metrics::Metrics;
use crate::protocol::{Grant, ProtocolError, QueuePairEnd, VerbsOffer};
use crate::store::{ReadMode, StoreError};

pub(crate) enum Fabric {}

pub(crate) enum Rdma {}

pub(crate) enum Staged {}

pub(crate) enum Inbox {}

impl Fabric {
    pub(crate) fn find(_: &super::EngineOptions, _: &Arc<Metrics>) -> Result<Self, &'static str> {
        Err("this program was built without verbs")
    }

    pub(crate) fn staging(&self) -> u64 {
        match *self {}
    }

    pub(crate) fn offers(&self, _: IpAddr) -> Vec<VerbsOffer> {
        match *self {}
    }

    pub(super) fn accept(
        &self,
        _: IpAddr,
        _: &QueuePairEnd,
        _: StagingShare,
    ) -> Result<(Arc<Rdma>, Inbox, QueuePairEnd), Infallible> {
        match *self {}
    }
}

impl Staged {
    pub(crate) fn grant(&self) -> Grant {
        match *self {}
    }

    pub(crate) fn length(&self) -> u64 {
        match *self {}
    }
}

impl Inbox {
    pub(crate) fn open(
        self,
        _: impl FnMut(&[u8]) -> Result<(), ProtocolError>,
        _: impl FnOnce(),
    ) -> io::Result<()> {
        match self {}
    }
}

impl Rdma {
    pub(crate) fn send(&self, _: &[u8]) -> bool {
        match *self {}
    }

    pub(crate) fn end(&self) {
        match *self {}
    }

    pub(crate) fn stage(&self, _: &Located, _: ReadMode) -> Result<Option<Staged>, StoreError> {
        match *self {}
    }

    pub(crate) fn lend(&self, _: Ticket, _: Staged) {
        match *self {}
    }

    pub(crate) fn done(&self, _: u64) {
        match *self {}
    }

    pub(crate) fn expire(&self) {
        match *self {}
    }
}
