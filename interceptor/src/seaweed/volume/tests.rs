//! Reads from a server that sends right, odd and wrong responses.

use std::io::Write;
use std::time::Duration;

use rdma_engine::checksum::{crc32c, legacy};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

use super::*;
use crate::seaweed::http1::HttpError;
use crate::seaweed::scripted::{ScriptedServer, Step, answer, send};

const FID: FileId = FileId { volume: 3, key: 1, cookie: 0x6370_37d6 };

fn chunk(size: u64) -> Chunk {
    Chunk {
        fid: FID,
        offset: 0,
        size,
        modified_ts_ns: 0,
        cipher_key: None,
        is_compressed: false,
        is_manifest: false,
    }
}

fn deadline() -> Deadlines {
    (Instant::now() + Duration::from_secs(20)).into()
}

fn volumes() -> VolumeClient {
    VolumeClient::new(Arc::new(Security::default()), HttpTimeouts::default())
}

fn data(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 31 % 251) as u8).collect()
}

fn etag(stored: &[u8]) -> String {
    format!("\"{:08x}\"", crc32c(stored))
}

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

fn encrypt(key: &[u8; 32], plain: &[u8]) -> Vec<u8> {
    let sealing = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).unwrap());
    let (mut sealed, nonce) = (plain.to_vec(), [9; NONCE_LEN]);
    let unique = Nonce::assume_unique_for_key(nonce);
    sealing.seal_in_place_append_tag(unique, Aad::empty(), &mut sealed).unwrap();
    [&nonce[..], &sealed].concat()
}

async fn whole(steps: Vec<Step>, chunk: &Chunk, offset: u64, length: usize) -> Result<Vec<u8>, VolumeError> {
    let server = ScriptedServer::always(steps);
    let endpoint = NeedleEndpoint::Volume(server.address().to_owned());
    let mut dst = vec![0xEE; length];
    volumes()
        .read_whole(&endpoint, chunk, offset, &mut dst, deadline(), &ResponseProgress::default())
        .await?;
    Ok(dst)
}

async fn range(steps: Vec<Step>, offset: u64, length: usize) -> Result<Vec<u8>, VolumeError> {
    let server = ScriptedServer::always(steps);
    let endpoint = NeedleEndpoint::Volume(server.address().to_owned());
    let mut dst = vec![0xEE; length];
    volumes().read_range(&endpoint, FID, offset, &mut dst, deadline(), &ResponseProgress::default()).await?;
    Ok(dst)
}

#[tokio::test]
async fn a_needle_is_verified_by_its_etag() {
    let data = data(300_000);
    let with = |etag: &str| send(200, &[("ETag", etag)], &data);
    let size = data.len();
    let read = async |etag: String| whole(with(&etag), &chunk(size as u64), 0, size).await;
    assert_eq!(read(etag(&data)).await.unwrap(), data);
    assert_eq!(
        read(format!("\"{:08x}\"", legacy(crc32c(&data)))).await.unwrap(),
        data,
        "as written before 3.09"
    );
    assert_eq!(read("\"not a checksum\"".to_owned()).await.unwrap(), data);
    let wrong = read(format!("\"{:08x}\"", crc32c(&data) ^ 1)).await.unwrap_err();
    assert!(matches!(wrong, VolumeError::Checksum { .. }));
    assert_eq!(wrong.class(), ErrorClass::Damaged);
}

#[tokio::test]
async fn a_needle_may_hold_more_than_its_chunk_but_not_less() {
    let data = data(200_000);
    let steps = send(200, &[("ETag", &etag(&data))], &data);
    assert_eq!(whole(steps.clone(), &chunk(1000), 0, 1000).await.unwrap(), data[..1000]);
    let short = whole(steps.clone(), &chunk(200_001), 0, 200_001).await.unwrap_err();
    assert!(matches!(short, VolumeError::Length { needed: 200_001, found: 200_000 }));
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    let steps = vec![Step::Send(chunked.into())];
    assert_eq!(whole(steps.clone(), &chunk(5), 0, 5).await.unwrap(), b"hello");
    let short = whole(steps, &chunk(6), 0, 6).await.unwrap_err();
    assert!(matches!(short, VolumeError::Length { needed: 6, found: 5 }));
}

#[tokio::test]
async fn damage_after_the_requested_part_is_noticed() {
    let mut data = data(200_000);
    let etag = etag(&data);
    *data.last_mut().unwrap() ^= 1;
    let damaged = whole(send(200, &[("ETag", &etag)], &data), &chunk(1000), 0, 1000).await;
    assert!(matches!(damaged, Err(VolumeError::Checksum { .. })));
}

#[tokio::test]
async fn a_compressed_needle_is_unpacked_and_cut() {
    let data = data(300_000);
    let stored = gzip(&data);
    let steps = send(200, &[("ETag", &etag(&stored)), ("Content-Encoding", "gzip")], &stored);
    // Whether the record says that the writer compressed makes no difference.
    for is_compressed in [false, true] {
        let chunk = Chunk { is_compressed, ..chunk(300_000) };
        assert_eq!(whole(steps.clone(), &chunk, 0, 300_000).await.unwrap(), data);
        assert_eq!(whole(steps.clone(), &chunk, 777, 5000).await.unwrap(), data[777..5777]);
    }
    let short = whole(steps, &chunk(300_001), 0, 10).await;
    assert!(matches!(short, Err(VolumeError::Length { needed: 300_001, found: 300_000 })));
}

#[tokio::test]
async fn a_needle_that_was_unpacked_on_the_way_is_not_verified() {
    let data = data(10_000);
    let steps = send(200, &[("ETag", &etag(&gzip(&data)))], &data);
    let compressed = Chunk { is_compressed: true, ..chunk(10_000) };
    assert_eq!(whole(steps.clone(), &compressed, 10, 100).await.unwrap(), data[10..110]);
    assert!(whole(steps, &chunk(10_000), 0, 10_000).await.is_err());
}

#[tokio::test]
async fn corrupt_gzip_is_refused_with_or_without_a_good_checksum() {
    let data = data(300_000);
    let mut stored = gzip(&data);
    let middle = stored.len() / 2;
    stored[middle] ^= 0x55;
    let good = etag(&stored);
    for (tag, codec) in [(good.as_str(), true), ("", true), ("\"00000000\"", false)] {
        let steps = send(200, &[("ETag", tag), ("Content-Encoding", "gzip")], &stored);
        let error = whole(steps, &chunk(300_000), 0, 300_000).await.unwrap_err();
        assert_eq!(matches!(error, VolumeError::Codec(_)), codec, "{error}");
        assert_eq!(error.class(), ErrorClass::Damaged);
    }
}

#[tokio::test]
async fn encrypted_needles_need_the_right_key() {
    let data = data(50_000);
    for is_compressed in [false, true] {
        let plain = if is_compressed { gzip(&data) } else { data.clone() };
        let stored = encrypt(&[7; 32], &plain);
        let steps = send(200, &[("ETag", &etag(&stored))], &stored);
        let with = |key| Chunk { cipher_key: Some(Box::new([key; 32])), is_compressed, ..chunk(50_000) };
        assert_eq!(whole(steps.clone(), &with(7), 0, 50_000).await.unwrap(), data);
        assert_eq!(whole(steps.clone(), &with(7), 49_000, 1000).await.unwrap(), data[49_000..]);
        let wrong = whole(steps, &with(8), 0, 50_000).await.unwrap_err();
        assert!(matches!(wrong, VolumeError::Codec(CodecError::Decrypt)));
    }
}

#[tokio::test]
async fn what_cannot_be_unpacked_is_a_step_of_its_own() {
    let stored = encrypt(&[7; 32], &data(5000));
    let server = ScriptedServer::always(send(200, &[("ETag", &etag(&stored))], &stored));
    let endpoint = NeedleEndpoint::Volume(server.address().to_owned());
    let chunk = Chunk { cipher_key: Some(Box::new([8; 32])), ..chunk(5000) };
    let timeline = Timeline::default();
    let (mut dst, progress) = (vec![0; 5000], ResponseProgress::of(timeline.clone()));
    let read = volumes().read_whole(&endpoint, &chunk, 0, &mut dst, deadline(), &progress).await;
    assert!(matches!(read, Err(VolumeError::Codec(CodecError::Decrypt))));
    let last = timeline.steps().pop().unwrap();
    assert_eq!((last.kind, last.server.as_deref()), (StepKind::Unpack, Some(server.address())));
    assert!(last.error.is_some());
}

#[tokio::test]
async fn a_manifest_is_read_whole_whatever_the_size_of_its_chunk() {
    let data = data(5000);
    let stored = gzip(&data);
    let plain = send(200, &[("ETag", &etag(&data))], &data);
    let packed = send(200, &[("ETag", &etag(&stored)), ("Content-Encoding", "gzip")], &stored);
    for steps in [plain, packed] {
        let server = ScriptedServer::always(steps);
        let endpoint = NeedleEndpoint::Volume(server.address().to_owned());
        let read = async |limit| {
            volumes()
                .read_needle(&endpoint, &chunk(1 << 40), limit, deadline(), &ResponseProgress::default())
                .await
        };
        assert_eq!(read(5000).await.unwrap(), data);
        assert_eq!(read(4999).await.unwrap_err().class(), ErrorClass::Damaged);
    }
}

#[tokio::test]
async fn a_range_is_exactly_the_one_that_was_asked_for() {
    let good = send(206, &[("Content-Range", "bytes 10-14/100")], b"hello");
    assert_eq!(range(good, 10, 5).await.unwrap(), b"hello");
    for (status, content_range, body) in [
        (200, "bytes 10-14/100", &b"hello"[..]),
        (200, "", b""),
        (206, "", b"hello"),
        (206, "bytes 11-15/100", b"hello"),
        (206, "bytes 10-13/14", b"hell"),
        (206, "bytes 10-14/100", b"hell"),
        (206, "bytes 10-14/100", b"hello!"),
        (206, "bytes 15-14/15", b""),
        (416, "", b"out of range"),
    ] {
        let outcome = range(send(status, &[("Content-Range", content_range)], body), 10, 5).await;
        let error = outcome.unwrap_err();
        assert_eq!(error.class(), ErrorClass::Damaged, "{status} {content_range:?} {body:?}: {error}");
    }
    let packed = send(206, &[("Content-Range", "bytes 10-14/100"), ("Content-Encoding", "gzip")], b"hello");
    assert!(matches!(range(packed, 10, 5).await, Err(VolumeError::Protocol(_))));
}

#[tokio::test]
async fn statuses_say_what_can_be_done() {
    for (status, class) in [
        (404, ErrorClass::Missing),
        (429, ErrorClass::Busy),
        (503, ErrorClass::Busy),
        (400, ErrorClass::Refused),
        (401, ErrorClass::Refused),
        (403, ErrorClass::Refused),
        (499, ErrorClass::Failed),
        (500, ErrorClass::Failed),
        (204, ErrorClass::Damaged),
    ] {
        let error = whole(send(status, &[], b""), &chunk(5), 0, 5).await.unwrap_err();
        assert_eq!(error.class(), class, "{status}: {error}");
    }
    let refused = whole(send(401, &[], b"{\"error\":\"wrong jwt\"}"), &chunk(5), 0, 5).await.unwrap_err();
    assert!(refused.to_string().contains("wrong jwt"), "{refused}");
}

#[tokio::test]
async fn a_connection_that_breaks_is_a_failure() {
    let mut progress = answer(200, &[], &[1; 100_000]);
    progress.truncate(50_000);
    let error =
        whole(vec![Step::Send(progress), Step::Reset], &chunk(100_000), 0, 100_000).await.unwrap_err();
    assert!(matches!(error, VolumeError::Http(HttpError::Io(_))));
    assert_eq!(error.class(), ErrorClass::Failed);
}

#[tokio::test]
async fn one_redirect_is_followed_with_the_same_fields() {
    let data = data(100);
    let target = ScriptedServer::always(send(200, &[("ETag", &etag(&data))], &data));
    let location = format!("http://{}/3,01637037d6?collection=&proxied=true", target.address());
    let steps = send(301, &[("Location", &location)], b"");
    assert_eq!(whole(steps, &chunk(100), 0, 100).await.unwrap(), data);
    let request = &target.requests()[0];
    assert!(request.starts_with("GET /3,01637037d6?collection=&proxied=true&readDeleted=true HTTP/1.1\r\n"));
    assert!(request.contains("\r\nAccept-Encoding: gzip\r\n"));

    let circle = whole(send(301, &[("Location", "/again")], b""), &chunk(100), 0, 100).await;
    assert!(matches!(circle, Err(VolumeError::Protocol(_))));
    let nowhere = whole(send(301, &[], b""), &chunk(100), 0, 100).await;
    assert!(matches!(nowhere, Err(VolumeError::Protocol(_))));
}

#[tokio::test]
async fn requests_carry_what_the_servers_need() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("security.toml");
    std::fs::write(&path, "[jwt.signing.read]\nkey = \"k\"\nexpires_after_seconds = 0\n").unwrap();
    let security = Arc::new(Security::load_from(&path).unwrap());
    let server = ScriptedServer::start(|nth, _| match nth {
        0 => send(200, &[], b"hello"),
        _ => send(206, &[("Content-Range", "bytes 1-2/5")], b"el"),
    });
    let volumes = VolumeClient::new(security.clone(), HttpTimeouts::default());
    let mut dst = [0; 5];
    let endpoint = NeedleEndpoint::Volume(server.address().to_owned());
    volumes
        .read_whole(&endpoint, &chunk(5), 0, &mut dst, deadline(), &ResponseProgress::default())
        .await
        .unwrap();
    let endpoint = NeedleEndpoint::FilerProxy(server.address().to_owned());
    volumes
        .read_range(&endpoint, FID, 1, &mut dst[..2], deadline(), &ResponseProgress::default())
        .await
        .unwrap();
    let requests = server.requests();
    let token = format!("\r\nAuthorization: Bearer {}\r\n", security.read_token(FID).unwrap());
    assert!(requests[0].starts_with("GET /3,01637037d6?readDeleted=true HTTP/1.1\r\n"));
    assert!(requests[0].contains(&token) && requests[1].contains(&token));
    assert!(requests[0].contains("Accept-Encoding: gzip") && !requests[0].contains("Range"));
    assert!(requests[1].starts_with("GET /?proxyChunkId=3,01637037d6&readDeleted=true HTTP/1.1\r\n"));
    assert!(requests[1].contains("\r\nRange: bytes=1-2\r\n") && !requests[1].contains("Accept-Encoding"));
}

#[tokio::test]
async fn memory_for_a_needle_is_bounded_whatever_its_server_claims() {
    // A needle of a truncated file, which is longer than its chunk, is read; one that claims a
    // gigabyte is not.
    let data = data(300_000);
    let stored = gzip(&data);
    let gzip_field = ("Content-Encoding", "gzip");
    let steps = send(200, &[("ETag", &etag(&stored)), gzip_field], &stored);
    assert_eq!(whole(steps, &chunk(1000), 0, 1000).await.unwrap(), data[..1000]);
    let claim = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\nContent-Encoding: gzip\r\n\r\n";
    let refused = whole(vec![Step::Send(claim.to_vec())], &chunk(1000), 0, 1000).await.unwrap_err();
    assert!(matches!(refused, VolumeError::TooLarge(MAX_OVERSIZED_NEEDLE)), "{refused}");

    // Few bytes that unpack to many: around what is encrypted, where they would have to be kept.
    let bomb = gzip(&vec![0; 4 << 20]);
    let steps = send(200, &[("ETag", &etag(&bomb)), gzip_field], &bomb);
    let chunk = Chunk { cipher_key: Some(Box::new([7; 32])), ..chunk(4 << 20) };
    let refused = whole(steps, &chunk, 0, 1000).await.unwrap_err();
    assert!(matches!(refused, VolumeError::Codec(CodecError::TooLong(_))), "{refused}");
}
