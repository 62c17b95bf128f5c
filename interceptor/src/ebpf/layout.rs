//! The fields that the programs read, and where this kernel has them.

use interceptor_ebpf::settings::Layout;

use super::types::Types;

/// A field that programs read, by a name that people know.
pub(super) type Field = &'static str;

pub(super) const HOST: Field = "address_space.host";
pub(super) const SUPER: Field = "inode.i_sb";
pub(super) const SIZE: Field = "inode.i_size";
pub(super) const NUMBER: Field = "inode.i_ino";
pub(super) const DEVICE: Field = "super_block.s_dev";
pub(super) const NODE: Field = "fuse_inode.nodeid";
pub(super) const FOLIO_MAPPING: Field = "folio.mapping";
pub(super) const FOLIO_FLAGS: Field = "folio.flags";
pub(super) const FOLIO_LARGE: Field = "enum pageflags PG_head";
pub(super) const FOLIO_ORDER: Field = "folio._flags_1";
pub(super) const REQUEST_MOUNT: Field = "fuse_req.fm";
pub(super) const CONNECTION: Field = "fuse_mount.fc";
pub(super) const CONNECTION_DEVICE: Field = "fuse_conn.dev";
pub(super) const OPCODE: Field = "fuse_req.in.h.opcode";
pub(super) const UNIQUE: Field = "fuse_req.in.h.unique";
pub(super) const REQUEST_NODE: Field = "fuse_req.in.h.nodeid";
pub(super) const PID: Field = "fuse_req.in.h.pid";
pub(super) const ERROR: Field = "fuse_req.out.h.error";
pub(super) const ARGUMENTS: Field = "fuse_req.args";
pub(super) const VALUE: Field = "fuse_args.in_args.value";
pub(super) const ZEROING: Field = "fuse_args.page_zeroing";
pub(super) const FILE: Field = "kiocb.ki_filp";
pub(super) const POSITION: Field = "kiocb.ki_pos";
pub(super) const COUNT: Field = "iov_iter.count";
pub(super) const FILE_INODE: Field = "file.f_inode";

/// Where the fields are.
pub(super) struct Found {
    /// For the programs.
    pub(super) layout: Layout,
    /// Whether FUSE is a module, whose tracepoints and functions are not in the kernel's own list.
    pub(super) fuse_is_module: bool,
    missing: Vec<Field>,
}

impl Found {
    /// Looks for all of them.
    pub(super) fn in_types(types: &Types) -> Self {
        let mut missing = Vec::new();
        let mut found = |field: Field, value: Option<u32>| {
            value.unwrap_or_else(|| {
                missing.push(field);
                0
            })
        };
        let bits = |field: Field| {
            let (structure, path) = field.split_once('.')?;
            types.bit_offset(structure, path)
        };
        let bytes = |field: Field| bits(field).filter(|bit| bit % 8 == 0).map(|bit| bit / 8);
        // The programs come by the inode, which is embedded in FUSE's own.
        let node = bytes(NODE).zip(types.bit_offset("fuse_inode", "inode"));
        let node = node.and_then(|(node, inode)| node.checked_sub(inode / 8));
        let large = types.enumerator("PG_head").and_then(|bit| 1u32.checked_shl(bit));
        let zeroing = bits(ZEROING);
        let layout = Layout {
            mapping_host: found(HOST, bytes(HOST)),
            inode_super: found(SUPER, bytes(SUPER)),
            inode_size: found(SIZE, bytes(SIZE)),
            inode_number: found(NUMBER, bytes(NUMBER)),
            super_device: found(DEVICE, bytes(DEVICE)),
            inode_node: found(NODE, node),
            folio_mapping: found(FOLIO_MAPPING, bytes(FOLIO_MAPPING)),
            folio_flags: found(FOLIO_FLAGS, bytes(FOLIO_FLAGS)),
            folio_large: found(FOLIO_LARGE, large),
            folio_order: found(FOLIO_ORDER, bytes(FOLIO_ORDER)),
            request_mount: found(REQUEST_MOUNT, bytes(REQUEST_MOUNT)),
            mount_connection: found(CONNECTION, bytes(CONNECTION)),
            connection_device: found(CONNECTION_DEVICE, bytes(CONNECTION_DEVICE)),
            request_opcode: found(OPCODE, bytes(OPCODE)),
            request_unique: found(UNIQUE, bytes(UNIQUE)),
            request_node: found(REQUEST_NODE, bytes(REQUEST_NODE)),
            request_pid: found(PID, bytes(PID)),
            request_error: found(ERROR, bytes(ERROR)),
            request_args: found(ARGUMENTS, bytes(ARGUMENTS)),
            args_value: found(VALUE, bytes(VALUE)),
            args_zeroing: found(ZEROING, zeroing.map(|bit| bit / 8)),
            args_zeroing_bit: zeroing.map_or(0, |bit| 1 << (bit % 8)),
            kiocb_file: found(FILE, bytes(FILE)),
            kiocb_position: found(POSITION, bytes(POSITION)),
            iter_count: found(COUNT, bytes(COUNT)),
            file_inode: found(FILE_INODE, bytes(FILE_INODE)),
        };
        Self { layout, fuse_is_module: types.fuse_is_module(), missing }
    }

    /// Which of these fields this kernel does not have.
    pub(super) fn missing(&self, fields: &[Field]) -> Vec<Field> {
        fields.iter().copied().filter(|field| self.missing.contains(field)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A kernel without type information has no programs either.
    #[test]
    fn this_kernel_has_most_of_them() {
        let Ok(types) = Types::of_kernel() else {
            return;
        };
        let found = Found::in_types(&types);
        assert_eq!(
            found.missing(&[HOST, SUPER, SIZE, DEVICE, POSITION, COUNT, FILE_INODE]),
            Vec::<Field>::new()
        );
        assert!(found.layout.inode_super > 0);
        assert!(found.layout.args_zeroing_bit.count_ones() == 1 || found.missing.contains(&ZEROING));
    }
}
