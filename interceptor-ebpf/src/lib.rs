//! What the kernel-side programs and the daemon agree on: the layouts of the maps they share.
#![no_std]

pub mod histogram;
