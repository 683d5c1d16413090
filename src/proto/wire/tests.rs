use proptest::prelude::*;

use super::*;
use crate::catalog::{CatalogId, Epoch, Revision};
use crate::identity::NodeId;
use crate::identity::NodeUri;
use crate::proto::code::Code;
use crate::spec::hash::hex;
use crate::spec::{SpecHash, SpecName};

fn name(text: &str) -> SpecName {
    text.parse().expect("a name")
}

fn uri() -> NodeUri {
    "spiffe://c/worker/w".parse().expect("a URI")
}

fn requests() -> Vec<Request> {
    let hash = SpecHash::from_bytes([7; 32]);
    let sid = SessionId::new(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10);
    vec![
        Request::Hello(Hello {
            agent: "larder/0.1.0".into(),
        }),
        Request::Resolve(Resolve {
            at: Some(Revision::new(300)),
            names: vec![
                ResolveName {
                    name: name("a"),
                    if_hash: Some(hash),
                    body: true,
                },
                ResolveName {
                    name: name("b/c"),
                    if_hash: None,
                    body: false,
                },
            ],
            peering: Peering::Takes,
        }),
        Request::GetBlob(GetBlob { hash, force: true }),
        Request::Have(Have {
            hashes: vec![hash, hash],
        }),
        Request::PutBlob(PutBlob { hash, len: 70_000 }),
        Request::Publish(Publish {
            key: Some([3; 16]),
            note: "why".into(),
            changes: vec![PublishName {
                name: name("a"),
                hash: Some(hash),
                len: 10,
                expect: Some(Revision::ZERO),
            }],
        }),
        Request::List(List {
            at: None,
            prefix: "etl/".into(),
            after: Some(name("etl/a")),
            deleted: true,
            limit: 100,
        }),
        Request::GetLog(GetLog {
            name: Some(name("a")),
            before: None,
            limit: 5,
        }),
        Request::GetStatus,
        Request::Watch(Watch { sid }),
        Request::Renew(Renew {
            sid,
            nonce: 7,
            have: Some((Epoch::new(1), Revision::new(2))),
            acked: None,
            lease: true,
        }),
        Request::PrepAck(PrepAck {
            sid,
            epoch: Epoch::new(1),
            rev: Revision::new(3),
        }),
        Request::Leave(Leave { sid }),
        Request::GetDelta(GetDelta {
            epoch: Epoch::new(1),
            from: Revision::new(2),
        }),
        Request::GetCatalog(GetCatalog { have: vec![1; 8] }),
        Request::Pin(Pin {
            epoch: Epoch::new(1),
            rev: Revision::new(2),
            for_ms: 1_000,
        }),
        Request::Unpin(Unpin { id: 4 }),
        Request::GetPins(GetPins {}),
        Request::Meet(Meet {
            addr: Some(([10, 0, 0, 1], 4_321).into()),
            dial_back: true,
            leaf: false,
        }),
        Request::GetMembers(GetMembers {}),
        Request::Relay(Relay {}),
        Request::GetBlobs(GetBlobs {
            hashes: vec![hash, SpecHash::from_bytes([9; 32])],
            force: true,
        }),
    ]
}

fn responses() -> Vec<Response> {
    let version = WireVersion {
        rev: Revision::new(2),
        hash: Some(SpecHash::from_bytes([7; 32])),
        len: 9,
    };
    let (catalog, epoch, rev) = (
        CatalogId::from_bytes([1; 16]),
        Epoch::new(1),
        Revision::new(2),
    );
    let marks = Marks {
        all: Revision::ZERO,
        names: vec![(name("a"), rev)],
    };
    let delta = Delta {
        catalog,
        epoch,
        rev,
        steps: vec![Step {
            head: HeadBytes(vec![9; SignedHead::LEN]),
            changes: vec![WireChange {
                name: name("a"),
                hash: None,
                len: 0,
            }],
        }],
    };
    let holder = Holder {
        node: NodeId::from_bytes([5; 16]),
        addr: ([10, 0, 0, 2], 4_321).into(),
    };
    let pinned = Pinned {
        id: 4,
        rev,
        until_unix_ms: 1_700_000_000_000,
        by: "spiffe://c/worker/w".into(),
    };
    vec![
        Response::Welcome(Welcome {
            agent: "larder/0.1.0".into(),
            max_spec_len: 1 << 20,
            head: Some(HeadBytes(vec![9; SignedHead::LEN])),
            proof: Some([8; 64].into()),
        }),
        Response::Resolved(Resolved {
            catalog,
            epoch,
            rev,
        }),
        Response::Outcome(Outcome {
            version: Some(version),
            body: true,
            ask: Vec::new(),
        }),
        Response::Outcome(Outcome {
            version: None,
            body: false,
            ask: vec![holder],
        }),
        Response::Blob(Blob { len: 5 }),
        Response::Missing(Missing { hashes: vec![] }),
        Response::Stored(()),
        Response::Published(PublishedRev {
            catalog,
            epoch,
            rev,
            changed: 3,
            waited: Waited::default(),
        }),
        Response::Listing(Listing {
            catalog,
            epoch,
            rev,
            records: vec![(name("a"), version)],
            more: false,
        }),
        Response::Log(Log {
            catalog,
            epoch,
            oldest: Revision::new(1),
            entries: vec![LogEntry {
                rev,
                by: "spiffe://c/publisher/p".into(),
                at_unix_ms: 1_700_000_000_000,
                note: String::new(),
                changed: 1,
                version: Some(version),
            }],
            more: true,
        }),
        Response::Status(Status { json: "{}".into() }),
        Response::Watching(()),
        Response::Grant(Grant {
            sid: SessionId::new(9),
            nonce: 7,
            catalog,
            epoch,
            rev,
            lease_us: 6_000_000,
            watching: true,
            marks: marks.clone(),
            delta: delta.clone(),
        }),
        Response::Prepare(Prepare {
            catalog,
            epoch,
            rev,
            marks,
            hints: vec![Hint {
                name: name("a"),
                hash: SpecHash::from_bytes([7; 32]),
                len: 9,
            }],
        }),
        Response::Release(delta.clone()),
        Response::Delta(delta),
        Response::CatalogHead(CatalogHead {
            head: HeadBytes(vec![9; SignedHead::LEN]),
            buckets: vec![0, 4_095],
            records: 1,
            parts: 1,
        }),
        Response::CatalogPart(CatalogPart {
            records: vec![(name("a"), version)],
        }),
        Response::Pinned(pinned.clone()),
        Response::Pins(Pins { pins: vec![pinned] }),
        Response::Done(()),
        Response::Met(Met {
            seen: ([10, 0, 0, 1], 4_321).into(),
            reached: Some(true),
            nodes: vec![Neighbour {
                uri: uri(),
                addr: ([0xfd00, 0, 0, 0, 0, 0, 0, 2], 4_321).into(),
            }],
        }),
        Response::Members(Members {
            part: vec![0, 0],
            uris: vec![uri()],
            more: true,
        }),
        Response::Relaying(Relaying {
            flow: 5,
            to: ([10, 0, 0, 1], 7_457).into(),
        }),
        Response::Holders(Holders { ask: vec![holder] }),
        Response::BlobOf(BlobOf { index: 1, len: 5 }),
        Response::NoBlobOf(NoBlobOf {
            index: 63,
            refusal: WireRefusal::from(&Refusal::new(Code::Busy, "later")),
        }),
        Response::HoldersOf(HoldersOf {
            index: 1,
            ask: vec![holder],
        }),
        Response::Holding(()),
    ]
}

fn split(frame: &[u8]) -> (u8, &[u8]) {
    let (prefix, header) = frame.split_at(FRAME_PREFIX_LEN);
    let prefix = prefix.try_into().expect("five bytes");
    let (tag, len) = parse_prefix(prefix).expect("our own frame");
    assert_eq!(len, header.len());
    (tag, header)
}

#[test]
fn every_message_round_trips() {
    for request in requests() {
        let frame = request.to_frame().expect("small");
        let (tag, header) = split(&frame);
        assert_eq!(Request::from_frame(tag, header), Ok(request));
    }
    for response in responses() {
        let frame = response.to_frame().expect("small");
        let (tag, header) = split(&frame);
        assert_eq!(decode_answer(tag, header), Ok(Ok(response)));
    }
    let refusal = Refusal::new(Code::Expect, "lost")
        .at(Revision::new(4))
        .about(name("a"));
    let frame = refusal_frame(&refusal);
    let (tag, header) = split(&frame);
    assert_eq!(decode_answer(tag, header), Ok(Err(refusal)));
}

#[test]
fn the_bytes_are_fixed() {
    let mut lines = Vec::new();
    for request in requests() {
        lines.push(hex(&request.to_frame().expect("small")));
    }
    for response in responses() {
        lines.push(hex(&response.to_frame().expect("small")));
    }
    lines.push(hex(&refusal_frame(&Refusal::new(Code::Busy, "later"))));
    let golden = include_str!("../../../tests/data/frames.hex");
    assert_eq!(lines, golden.lines().collect::<Vec<_>>());
}

#[test]
fn short_long_and_unknown_frames_are_refused() {
    for request in requests() {
        let frame = request.to_frame().expect("small");
        let (tag, header) = split(&frame);
        for cut in 0..header.len() {
            assert!(
                Request::from_frame(tag, &header[..cut]).is_err(),
                "{request:?} at {cut}"
            );
        }
        let long = [header, &[0]].concat();
        assert_eq!(
            Request::from_frame(tag, &long),
            Err(FrameError::Trailing { extra: 1 })
        );
    }
    assert_eq!(Request::from_frame(200, &[]), Err(FrameError::Tag(200)));
    assert_eq!(Response::from_frame(200, &[]), Err(FrameError::Tag(200)));
    assert!(
        Request::from_frame(tag::WELCOME, &[]).is_err(),
        "an answer is no request"
    );
}

#[test]
fn a_length_beyond_the_limit_is_refused_before_anything_is_read() {
    let [a, b, c, d] = (MAX_FRAME_LEN + 1).to_be_bytes();
    assert!(matches!(
        parse_prefix([a, b, c, d, tag::HELLO]),
        Err(FrameError::TooLong { .. })
    ));
    assert!(parse_prefix([0, 0, 0, 0, tag::HELLO]).is_err());
}

#[test]
fn a_name_that_is_not_a_name_does_not_decode() {
    let bad = frame(
        tag::RESOLVE,
        &(None::<u64>, vec![("../etc", None::<[u8; 32]>, true)]),
    );
    let bad = bad.expect("small");
    let (tag, header) = split(&bad);
    assert!(matches!(
        Request::from_frame(tag, header),
        Err(FrameError::Header(_))
    ));
}

#[test]
fn an_unknown_code_is_internal_and_keeps_its_number() {
    let bytes = frame(tag::REFUSAL, &(999_u16, "new", None::<u64>, None::<String>));
    let bytes = bytes.expect("small");
    let (tag, header) = split(&bytes);
    let refusal = decode_answer(tag, header)
        .expect("decodes")
        .expect_err("refusal");
    assert_eq!(refusal.code, Code::Internal);
    assert!(refusal.message.contains("999"));
}

proptest! {
    #[test]
    fn foreign_bytes_never_panic(tag: u8, header: Vec<u8>, prefix: [u8; 5]) {
        let _ = Request::from_frame(tag, &header);
        let _ = decode_answer(tag, &header);
        let _ = parse_prefix(prefix);
    }
}
