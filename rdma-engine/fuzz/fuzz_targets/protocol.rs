//! Messages of both sides: decoding never panics or takes more memory than the message has bytes,
//! and a decoded message is encoded as it was.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use rdma_engine::protocol::frame::HEADER;
use rdma_engine::protocol::{Choose, ClientMessage, EngineMessage, FrameHeader, Hello, MessageKind, Welcome};
use rdma_engine_fuzz::bounded;

/// What a message takes besides a few times its own length: a Welcome of 32 offers.
const SPARE: usize = 16 << 10;

/// The body of the message that `encode` writes.
fn body_of(encode: impl FnOnce(&mut BytesMut)) -> BytesMut {
    let mut written = BytesMut::new();
    encode(&mut written);
    written.split_off(HEADER)
}

fuzz_target!(|input: &[u8]| bounded(SPARE + 8 * input.len(), || {
    let Some((head, body)) = input.split_first_chunk::<HEADER>() else { return };
    let Ok(header) = FrameHeader::parse(head) else { return };
    if let Ok(request) = ClientMessage::decode(header, body) {
        assert_eq!(body_of(|out| request.encode(header.request, out)), body);
    }
    if let Ok(answer) = EngineMessage::decode(header, body) {
        assert_eq!(body_of(|out| answer.encode(header.request, out)), body);
    }
    // These may have unknown fields at their end, which are not encoded again; all known fields
    // must be the same.
    if let Ok(hello) = Hello::decode(body) {
        assert_eq!(Hello::decode(&body_of(|out| hello.encode(out))), Ok(hello));
    }
    if let Ok(welcome) = Welcome::decode(body) {
        assert_eq!(Welcome::decode(&body_of(|out| welcome.encode(out))), Ok(welcome));
    }
    if let Ok(choice) = Choose::decode(body) {
        assert_eq!(Choose::decode(&body_of(|out| choice.encode(MessageKind::Choose, out))), Ok(choice));
    }
}));
