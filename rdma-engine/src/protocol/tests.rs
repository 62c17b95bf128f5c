//! Every message is decoded as it was encoded, and other bytes are not taken for a message.

use bytes::BytesMut;
use proptest::prelude::*;

use super::*;
use crate::needle::{Flags, Header};
use crate::{FileId, Refusal};

fn split(bytes: &[u8]) -> (FrameHeader, &[u8]) {
    let (header, body) = bytes.split_first_chunk().unwrap();
    let header = FrameHeader::parse(header).unwrap();
    assert_eq!(header.length as usize, body.len());
    (header, body)
}

fn needle() -> impl Strategy<Value = NeedleInfo> {
    (any::<(u32, u64, i32, u32, u8, bool)>(), 0..=MAX_READ, 0..=MAX_READ).prop_map(
        |(fields, length, more)| {
            let (cookie, key, size, checksum, flags, deleted) = fields;
            let header = Header { cookie, key, size };
            NeedleInfo { header, data_size: length + more, checksum, flags: Flags(flags), deleted, length }
        },
    )
}

fn answer() -> impl Strategy<Value = EngineMessage> {
    prop_oneof![
        needle().prop_map(EngineMessage::Data),
        (needle(), any::<(u64, u32, u32)>()).prop_map(|(needle, (address, rkey, lease_ms))| {
            EngineMessage::Grant(needle, Grant { address, rkey, lease_ms })
        }),
        (needle(), any::<(u32, u64, u64, bool)>()).prop_map(
            |(needle, (file, record, position, attached))| {
                EngineMessage::File { needle, file, record, position, attached }
            }
        ),
        any::<u16>().prop_map(|code| EngineMessage::Refused(Refusal::from_code(code))),
        Just(EngineMessage::Pong),
        any::<u32>().prop_map(|file| EngineMessage::Forget { file }),
    ]
}

fn request() -> impl Strategy<Value = ClientMessage> {
    prop_oneof![
        (any::<(u32, u64, u32, u32, u32)>(), prop::collection::vec(any::<u8>(), 0..=MAX_TOKEN)).prop_map(
            |((volume, key, cookie, offset, length), token)| {
                ClientMessage::Read(ReadRequest {
                    fid: FileId { volume, key, cookie },
                    offset,
                    length,
                    token,
                })
            }
        ),
        Just(ClientMessage::Done),
        Just(ClientMessage::Cancel),
        Just(ClientMessage::Ping),
    ]
}

fn queue_pair() -> impl Strategy<Value = QueuePairEnd> {
    (any::<(u8, [u8; 16], u16, u8)>(), 0u32..1 << 24, 0u32..1 << 24, 0u32..5).prop_map(
        |((port, gid, lid, reads), number, sequence, mtu)| QueuePairEnd {
            port,
            number,
            sequence,
            gid,
            lid,
            mtu: 256 << mtu,
            reads,
        },
    )
}

/// These capabilities, with the bit for a nonce or a proof set or cleared.
fn announcing(capabilities: u64, proof: bool) -> Capabilities {
    let bit = Capabilities::PROOF.0;
    Capabilities(if proof { capabilities | bit } else { capabilities & !bit })
}

fn welcome() -> impl Strategy<Value = Welcome> {
    let offer = prop_oneof![
        Just(Offer::Tcp),
        prop::collection::vec(any::<u8>(), 0..=107).prop_map(|socket| Offer::Local { socket }),
        any::<(u8, [u8; 16], u16, u16)>()
            .prop_map(|(port, gid, lid, gigabits)| { Offer::Verbs(VerbsOffer { port, gid, lid, gigabits }) }),
    ];
    let proof = any::<Option<([u8; 32], [u8; 32])>>();
    let offers = prop::collection::vec(offer, 0..=32);
    (any::<(u16, u64, u128, u32, u32)>(), 1u32.., 1..=MAX_READ, offers, proof).prop_map(
        |(fields, in_flight, read, offers, proof)| {
            let (version, capabilities, instance, idle_ms, lease_ms) = fields;
            let limits = SessionLimits { in_flight, read, idle_ms, lease_ms };
            let capabilities = announcing(capabilities, proof.is_some());
            let proof = proof.map(|(nonce, proof)| EngineProof { nonce, proof });
            Welcome { version, capabilities, instance, limits, offers, proof }
        },
    )
}

#[test]
fn a_read_request_is_encoded_as_documented() {
    let fid = FileId { volume: 3, key: 1, cookie: 0x6370_37d6 };
    let mut bytes = BytesMut::new();
    ClientMessage::Read(ReadRequest { fid, offset: 5, length: 4096, token: b"t".to_vec() })
        .encode(9, &mut bytes);
    let expected = [
        &[0, 0, 0, 27, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9][..],
        &[0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 1, 0x63, 0x70, 0x37, 0xd6, 0, 0, 0, 5, 0, 0, 16, 0, 0, 1, b't'],
    ];
    assert_eq!(bytes[..], expected.concat());
}

#[test]
fn messages_beyond_the_limits_are_refused() {
    let header = |length: u32, kind: u8| {
        let mut bytes = [0; frame::HEADER];
        bytes[..4].copy_from_slice(&length.to_be_bytes());
        bytes[4] = kind;
        FrameHeader::parse(&bytes)
    };
    assert!(header(frame::MAX_BODY, MessageKind::Read as u8).is_ok());
    assert_eq!(header(frame::MAX_BODY + 1, MessageKind::Read as u8), Err(ProtocolError::Limit));
    assert_eq!(header(0, 0), Err(ProtocolError::Kind(0)));
    assert_eq!(header(0, 200), Err(ProtocolError::Kind(200)));

    let mut bytes = BytesMut::new();
    let name = "ü".repeat(100);
    Hello { oldest: 1, newest: 1, capabilities: Capabilities(0), name, nonce: None }.encode(&mut bytes);
    assert_eq!(Hello::decode(split(&bytes).1).unwrap().name, "ü".repeat(32), "cut between characters");
    assert_eq!(Hello::decode(b"GET / HTTP/1.1\r\nHost: x"), Err(ProtocolError::Magic));
}

proptest! {
    #[test]
    fn requests_round_trip(request in request(), number: u64) {
        let mut bytes = BytesMut::new();
        request.encode(number, &mut bytes);
        let (header, body) = split(&bytes);
        prop_assert_eq!(header.request, number);
        prop_assert_eq!(ClientMessage::decode(header, body), Ok(request));
        let longer = [body, &[0]].concat();
        prop_assert_eq!(ClientMessage::decode(header, &longer), Err(ProtocolError::Long));
        if let Some((_, shorter)) = body.split_last() {
            prop_assert!(ClientMessage::decode(header, &body[..shorter.len()]).is_err());
        }
        prop_assert!(EngineMessage::decode(header, body).is_err());
    }

    #[test]
    fn answers_round_trip(answer in answer(), number: u64) {
        let mut bytes = BytesMut::new();
        answer.encode(number, &mut bytes);
        let (header, body) = split(&bytes);
        prop_assert_eq!(header.request, number);
        prop_assert_eq!(EngineMessage::decode(header, body), Ok(answer));
        let longer = [body, &[0]].concat();
        prop_assert_eq!(EngineMessage::decode(header, &longer), Err(ProtocolError::Long));
        if let Some((_, shorter)) = body.split_last() {
            prop_assert!(EngineMessage::decode(header, &body[..shorter.len()]).is_err());
        }
        prop_assert!(ClientMessage::decode(header, body).is_err());
    }

    #[test]
    fn the_bootstrap_round_trips(
        welcome in welcome(),
        pair in queue_pair(),
        (oldest, newest, capabilities) in any::<(u16, u16, u64)>(),
        name in "[a-z ü]{0,30}",
        nonce: Option<[u8; 32]>,
        local in any::<Option<[u8; 32]>>().prop_map(|proof| Choose::Local { proof }),
    ) {
        let capabilities = announcing(capabilities, nonce.is_some());
        let hello = Hello { oldest, newest, capabilities, name, nonce };
        let mut bytes = BytesMut::new();
        hello.encode(&mut bytes);
        prop_assert_eq!(Hello::decode(split(&bytes).1), Ok(hello));
        let mut bytes = BytesMut::new();
        welcome.encode(&mut bytes);
        prop_assert_eq!(Welcome::decode(split(&bytes).1), Ok(welcome));
        for choice in [Choose::Tcp, local, Choose::Verbs(pair)] {
            for kind in [MessageKind::Choose, MessageKind::Ready] {
                let mut bytes = BytesMut::new();
                choice.encode(kind, &mut bytes);
                let (header, body) = split(&bytes);
                prop_assert_eq!(header.kind, kind);
                prop_assert_eq!(Choose::decode(body), Ok(choice.clone()));
            }
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes: Vec<u8>, head: [u8; frame::HEADER], kind in 0u8..40) {
        let _ = Hello::decode(&bytes);
        let _ = Welcome::decode(&bytes);
        let _ = Choose::decode(&bytes);
        let mut head = head;
        head[..2].fill(0);
        head[4] = kind;
        if let Ok(header) = FrameHeader::parse(&head) {
            let _ = ClientMessage::decode(header, &bytes);
            let _ = EngineMessage::decode(header, &bytes);
        }
    }
}
