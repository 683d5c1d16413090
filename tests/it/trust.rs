//! Certificates, protocols and revocation between real processes: each refusal says whose fault it
//! is, on the side that can do something about it.

use std::fs;
use std::net::UdpSocket;
use std::path::Path;

use rustix::process::Signal;

use crate::hostile::dial_with_another_alpn;
use crate::peers::{body, get, published};
use crate::site::{Site, text};

#[test]
fn another_protocol_is_refused_and_both_sides_say_so() {
    let site = Site::new();
    let (coordinator, worker) = published(&site);
    for node in [&coordinator, &worker] {
        let error = dial_with_another_alpn(node.addr());
        // TLS: no protocol in common.
        let alert = quinn::TransportErrorCode::crypto(120);
        assert!(
            matches!(&error, quinn::ConnectionError::ConnectionClosed(close) if close.error_code == alert),
            "{error:?}"
        );
        node.says(&["handshake failed", "doesn't support any known protocol"]);
    }
    assert_eq!(get(&site, &worker, "daily", &[]).ok(), body());
}

/// An identity of the site whose certificate has expired.
pub(crate) fn expired(site: &Site, role: &str, name: &str) -> String {
    let dir = site.identity(role, name);
    let ca = fs::read_to_string(site.path("certs/ca.key")).expect("there");
    let ca = rcgen::KeyPair::from_pem(&ca).expect("a key");
    let mut issuer = rcgen::CertificateParams::default();
    issuer.distinguished_name = rcgen::DistinguishedName::new();
    let ca_name = "Larder CA of test.example";
    issuer
        .distinguished_name
        .push(rcgen::DnType::CommonName, ca_name);
    let mut params = rcgen::CertificateParams::default();
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2020, 1, 2);
    let uri = format!("spiffe://test.example/{role}/{name}");
    params.subject_alt_names = vec![rcgen::SanType::URI(uri.try_into().expect("ASCII"))];
    params.extended_key_usages = vec![
        rcgen::ExtendedKeyUsagePurpose::ServerAuth,
        rcgen::ExtendedKeyUsagePurpose::ClientAuth,
    ];
    let key = rcgen::KeyPair::generate().expect("a key");
    let issuer = rcgen::Issuer::new(issuer, ca);
    let cert = params.signed_by(&key, &issuer).expect("signed");
    let path = Path::new(&dir);
    fs::write(path.join("cert.pem"), cert.pem()).expect("written");
    fs::write(path.join("key.pem"), key.serialize_pem()).expect("written");
    dir
}

#[test]
fn an_expired_certificate_is_named_on_whichever_side_it_is() {
    let site = Site::new();
    let (good, _) = published(&site);
    let hint = "larder certs issue --force";
    let late = expired(&site, "coordinator", "late");
    let late = site.start(&["coordinator", "--certs", &late], "late");
    let late = late.expect("it starts");
    late.says(&["WARN", "expired"]);
    let peers = "this node refuses the peer: the certificate has expired";
    let own = "the peer refuses this node: the certificate has expired";
    let reader = site.identity("reader", "r");
    let late_reader = expired(&site, "reader", "late");
    for (certs, addr, why) in [
        (&reader, late.addr(), peers),
        (&late_reader, good.addr(), own),
    ] {
        let once = ["get", "daily", "--coordinator", addr, "--certs", certs];
        site.run(&once).fails(7, &[addr, why, hint]);
        let once = ["ls", "--coordinator", addr, "--certs", certs];
        site.run(&once).fails(7, &[addr, why, hint]);
    }
    let worker = site.worker("w", &late, &[]);
    get(&site, &worker, "daily", &[]).fails(7, &[late.addr(), peers, hint]);
    let certs = expired(&site, "worker", "late-worker");
    let args = ["worker", "--certs", &certs, "--coordinator", good.addr()];
    let worker = site.start(&args, "late-worker").expect("it starts");
    get(&site, &worker, "daily", &[]).fails(7, &[good.addr(), own, hint]);
}

#[test]
fn a_node_that_is_revoked_while_it_is_connected_is_cut_off_at_once() {
    let site = Site::new();
    let (coordinator, worker) = published(&site);
    let (dir, own) = (site.path("certs"), site.identity("coordinator", "c"));
    let dir = text(&dir);
    let uri = "spiffe://test.example/worker/honest";
    site.run(&["certs", "revoke", uri, "--dir", dir]).ok();
    let trust = |dir: &str| Path::new(dir).join("trust.yaml");
    fs::copy(trust(dir), trust(&own)).expect("copied");
    coordinator.signal(Signal::HUP);
    coordinator.says(&["WARN", "no longer trusted", "the certificate is revoked"]);
    let hop = format!("tried coordinator {}: ", coordinator.addr());
    for _ in 0..2 {
        let end = get(&site, &worker, "daily", &["--verified"]);
        end.fails(7, &["no proof", &hop, "revoked"]);
    }
    let held = get(&site, &worker, "daily", &["--at", "1"]);
    assert_eq!(held.ok(), body(), "what it holds is its own");
}

#[test]
fn one_refusal_among_other_failures_is_no_matter_of_trust_alone() {
    let site = Site::new();
    let worker = {
        let (coordinator, worker) = published(&site);
        coordinator.stop();
        worker
    };
    let silent = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let silent = silent.local_addr().expect("bound").to_string();
    // A worker where a coordinator is expected.
    let victim = site.worker_of("v", worker.addr(), &["--coordinator", &silent]);
    let wrong = "but a coordinator was expected";
    get(&site, &victim, "daily", &[]).fails(4, &["no proof", wrong, &silent]);
    let reader = site.identity("reader", "r");
    let coordinators = ["--coordinator", worker.addr(), "--coordinator", &silent];
    for what in [&["ls"][..], &["get", "daily"]] {
        let once = [what, &coordinators, &["--certs", &reader]].concat();
        site.run(&once).fails(4, &[wrong, &silent]);
    }
}
