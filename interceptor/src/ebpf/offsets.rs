//! The kernel fields that the programs read, and their offsets in the running kernel.

use interceptor_ebpf::settings::FieldOffsets;

use super::btf::KernelBtf;

/// A kernel field as `structure.field`, which is what messages name.
pub(super) type Field = &'static str;

pub(super) const MAPPING_HOST: Field = "address_space.host";
pub(super) const INODE_SB: Field = "inode.i_sb";
pub(super) const INODE_SIZE: Field = "inode.i_size";
pub(super) const INODE_INO: Field = "inode.i_ino";
pub(super) const SUPER_DEV: Field = "super_block.s_dev";
pub(super) const FUSE_NODEID: Field = "fuse_inode.nodeid";
pub(super) const FOLIO_MAPPING: Field = "folio.mapping";
pub(super) const FOLIO_FLAGS: Field = "folio.flags";
pub(super) const FOLIO_HEAD_BIT: Field = "enum pageflags PG_head";
pub(super) const FOLIO_ORDER: Field = "folio._flags_1";
pub(super) const REQUEST_OWNER: Field = "fuse_req.fm or fuse_req.chan";
pub(super) const OWNER_CONNECTION: Field = "fuse_mount.fc or fuse_chan.conn";
pub(super) const CONNECTION_DEV: Field = "fuse_conn.dev";
pub(super) const REQUEST_OPCODE: Field = "fuse_req.in.h.opcode";
pub(super) const REQUEST_UNIQUE: Field = "fuse_req.in.h.unique";
pub(super) const REQUEST_NODEID: Field = "fuse_req.in.h.nodeid";
pub(super) const REQUEST_PID: Field = "fuse_req.in.h.pid";
pub(super) const REQUEST_ERROR: Field = "fuse_req.out.h.error";
pub(super) const REQUEST_ARGS: Field = "fuse_req.args";
pub(super) const ARGS_VALUE: Field = "fuse_args.in_args.value";
pub(super) const ARGS_PAGE_ZEROING: Field = "fuse_args.page_zeroing";
pub(super) const KIOCB_FILE: Field = "kiocb.ki_filp";
pub(super) const KIOCB_POSITION: Field = "kiocb.ki_pos";
pub(super) const ITER_COUNT: Field = "iov_iter.count";
pub(super) const FILE_INODE: Field = "file.f_inode";

/// What a request belongs to, and the connection of that: a mount up to Linux 6.19, a channel in
/// Linux 7.3.
const REQUEST_OWNERS: [(Field, Field); 2] =
    [("fuse_req.fm", "fuse_mount.fc"), ("fuse_req.chan", "fuse_chan.conn")];

/// The offsets that this kernel has.
pub(super) struct ResolvedOffsets {
    /// As the programs take them; 0 for a missing field.
    pub(super) offsets: FieldOffsets,
    /// Whether FUSE is a module. Its functions and tracepoints are then absent from vmlinux BTF.
    pub(super) fuse_is_module: bool,
    missing: Vec<Field>,
}

impl ResolvedOffsets {
    /// Resolves every field that any program reads.
    pub(super) fn resolve(btf: &KernelBtf) -> Self {
        let mut missing = Vec::new();
        let mut or_missing = |field: Field, value: Option<u32>| {
            value.unwrap_or_else(|| {
                missing.push(field);
                0
            })
        };
        let bits = |field: Field| {
            let (structure, path) = field.split_once('.')?;
            btf.bit_offset(structure, path)
        };
        let bytes = |field: Field| bits(field).filter(|bit| bit % 8 == 0).map(|bit| bit / 8);
        // Programs are given the `inode` that is embedded in `fuse_inode`, so the offset is
        // relative to it.
        let node = bytes(FUSE_NODEID).zip(btf.bit_offset("fuse_inode", "inode"));
        let node = node.and_then(|(node, inode)| node.checked_sub(inode / 8));
        let head_mask = btf.enumerator("PG_head").and_then(|bit| 1u32.checked_shl(bit));
        let zeroing = bits(ARGS_PAGE_ZEROING);
        let owner = REQUEST_OWNERS.iter().find_map(|(owner, connection)| bytes(owner).zip(bytes(connection)));
        let offsets = FieldOffsets {
            mapping_host: or_missing(MAPPING_HOST, bytes(MAPPING_HOST)),
            inode_sb: or_missing(INODE_SB, bytes(INODE_SB)),
            inode_size: or_missing(INODE_SIZE, bytes(INODE_SIZE)),
            inode_ino: or_missing(INODE_INO, bytes(INODE_INO)),
            super_dev: or_missing(SUPER_DEV, bytes(SUPER_DEV)),
            fuse_nodeid: or_missing(FUSE_NODEID, node),
            folio_mapping: or_missing(FOLIO_MAPPING, bytes(FOLIO_MAPPING)),
            folio_flags: or_missing(FOLIO_FLAGS, bytes(FOLIO_FLAGS)),
            folio_head_mask: or_missing(FOLIO_HEAD_BIT, head_mask),
            folio_order: or_missing(FOLIO_ORDER, bytes(FOLIO_ORDER)),
            request_owner: or_missing(REQUEST_OWNER, owner.map(|(owner, _)| owner)),
            owner_connection: or_missing(OWNER_CONNECTION, owner.map(|(_, connection)| connection)),
            connection_dev: or_missing(CONNECTION_DEV, bytes(CONNECTION_DEV)),
            request_opcode: or_missing(REQUEST_OPCODE, bytes(REQUEST_OPCODE)),
            request_unique: or_missing(REQUEST_UNIQUE, bytes(REQUEST_UNIQUE)),
            request_nodeid: or_missing(REQUEST_NODEID, bytes(REQUEST_NODEID)),
            request_pid: or_missing(REQUEST_PID, bytes(REQUEST_PID)),
            request_error: or_missing(REQUEST_ERROR, bytes(REQUEST_ERROR)),
            request_args: or_missing(REQUEST_ARGS, bytes(REQUEST_ARGS)),
            args_value: or_missing(ARGS_VALUE, bytes(ARGS_VALUE)),
            args_page_zeroing: or_missing(ARGS_PAGE_ZEROING, zeroing.map(|bit| bit / 8)),
            args_page_zeroing_mask: zeroing.map_or(0, |bit| 1 << (bit % 8)),
            kiocb_file: or_missing(KIOCB_FILE, bytes(KIOCB_FILE)),
            kiocb_position: or_missing(KIOCB_POSITION, bytes(KIOCB_POSITION)),
            iter_count: or_missing(ITER_COUNT, bytes(ITER_COUNT)),
            file_inode: or_missing(FILE_INODE, bytes(FILE_INODE)),
        };
        Self { offsets, fuse_is_module: btf.fuse_is_module(), missing }
    }

    /// Those of `fields` that this kernel does not have.
    pub(super) fn missing(&self, fields: &[Field]) -> Vec<Field> {
        fields.iter().copied().filter(|field| self.missing.contains(field)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On a kernel without BTF no program is loaded either.
    #[test]
    fn the_running_kernel_has_the_common_fields() {
        let btf = match KernelBtf::of_running_kernel() {
            Ok(btf) => btf,
            Err(error) => return crate::skipped(error),
        };
        let found = ResolvedOffsets::resolve(&btf);
        assert_eq!(
            found.missing(&[
                MAPPING_HOST,
                INODE_SB,
                INODE_SIZE,
                SUPER_DEV,
                KIOCB_POSITION,
                ITER_COUNT,
                FILE_INODE
            ]),
            Vec::<Field>::new()
        );
        assert!(found.offsets.inode_sb > 0);
        assert!(
            found.offsets.args_page_zeroing_mask.count_ones() == 1
                || found.missing.contains(&ARGS_PAGE_ZEROING)
        );
    }
}
