//! Stands for `rdma` where the program is built without verbs: no connection ever has it, so nothing of this is ever called.

use std::sync::Weak;

use tokio::sync::OwnedSemaphorePermit;

use super::connection::Connection;
use super::{Destination, ReadError};
use crate::protocol::Grant;

pub(super) enum Rdma {}

impl Rdma {
    pub(super) fn listen(&self, _: &Weak<Connection>) -> bool {
        match *self {}
    }

    pub(super) fn place(&self) -> Option<OwnedSemaphorePermit> {
        match *self {}
    }

    pub(super) fn send(&self, _: &[u8]) -> bool {
        match *self {}
    }

    pub(super) fn is_unreachable(&self) -> bool {
        match *self {}
    }

    pub(super) fn abort(&self) {
        match *self {}
    }

    pub(super) fn is_broken(&self) -> bool {
        match *self {}
    }

    pub(super) fn is_registered(&self, _: &dyn Destination) -> bool {
        match *self {}
    }

    pub(super) async fn fetch(&self, _: &Grant, _: &mut [u8]) -> Result<u32, ReadError> {
        match *self {}
    }

    pub(super) async fn fetch_into(
        &self,
        _: &Grant,
        _: usize,
        _: Box<dyn Destination>,
    ) -> Result<Box<dyn Destination>, ReadError> {
        match *self {}
    }
}
