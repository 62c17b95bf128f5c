//! Stands for `rdma` where the program is built without verbs: no connection ever has it, so nothing of this is ever called.

use std::convert::Infallible;
use std::ptr::NonNull;
use std::sync::{Arc, Weak};

use tokio::sync::oneshot::error::RecvError;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::connection::Connection;
use super::{Destination, ReadError};
use crate::memory::Memory;
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

    pub(super) async fn answer<T>(&self, _: &mut oneshot::Receiver<T>) -> Result<T, RecvError> {
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

    pub(super) fn region(&self, _: &dyn Destination) -> Option<Infallible> {
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
        _: &Infallible,
    ) -> Result<Box<dyn Destination>, ReadError> {
        match *self {}
    }
}

/// Memory that devices could be shown, if this program knew any.
#[derive(Debug)]
pub struct RegistrationCache(());

impl RegistrationCache {
    /// Nothing of `memory` will be registered.
    pub fn new(_memory: Arc<dyn Memory>, _unit: usize) -> Arc<Self> {
        Arc::new(Self(()))
    }

    /// Calls `then`.
    pub fn withdraw<T>(&self, _start: NonNull<u8>, _length: usize, then: impl FnOnce() -> T) -> Option<T> {
        Some(then())
    }

    /// None.
    pub fn registered(&self) -> u64 {
        0
    }
}
