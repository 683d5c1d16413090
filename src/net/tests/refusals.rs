//! Certificates that one end refuses: the dialler learns the precise reason from either end.

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};

use super::*;
use crate::trust::Untrusted;

#[tokio::test]
async fn hello_makes_a_round_trip_and_says_who_is_there() {
    let pair = Pair::new();
    let link = pair.link();
    assert_eq!(link.peer(), None);
    let who = status(&link).await.expect("an answer");
    assert_eq!(who, pair.worker.identity().uri().to_string());
    assert_eq!(
        link.peer().as_ref(),
        Some(pair.coordinator.identity().uri())
    );
    assert_eq!(link.welcome().expect("up").max_spec_len, MAX_SPEC_LEN);
    assert!(link.rtt().is_some());
}

/// What a good worker says of a coordinator that shows a bad certificate.
async fn dialled_with(shown: &str) -> LinkError {
    let (certs, runtime) = (Certs::new(), Runtime::start().expect("a thread"));
    let server = raw(Some(raw_server(&certs.path(shown))));
    let worker = bind(&runtime, certs.load("dev/worker/w1"), options());
    let addr = server.local_addr().expect("bound").to_string();
    let accept = tokio::spawn(async move {
        if let Some(incoming) = server.accept().await {
            let _ = incoming.await;
        }
        server.wait_idle().await;
    });
    let error = status(&Link::new(&worker, addr, Wanted::Peer))
        .await
        .expect_err("refused");
    accept.abort();
    error
}

/// What a good coordinator makes a dialler see that shows a bad certificate.
async fn dialling_with(shown: Option<&str>) -> LinkError {
    let pair = Pair::new();
    let client = raw(None);
    let tls = raw_client(shown.map(|shown| pair.certs.path(shown)).as_deref());
    let connection = match raw_dial(&client, tls, &pair.coordinator).await {
        Ok(connection) => connection,
        Err(error) => return error,
    };
    raw_ask(&connection, &frame(&hello()), true)
        .await
        .expect_err("refused")
}

#[tokio::test]
async fn a_bad_certificate_of_the_one_who_is_dialled_has_its_own_reason() {
    for (shown, expected) in [
        ("bad/expired", Untrusted::Expired),
        ("bad/not-yet-valid", Untrusted::NotYetValid),
        ("bad/no-uri", Untrusted::NoNodeUri),
        ("bad/wrong-cluster", Untrusted::OtherCluster),
        ("bad/wrong-ca", Untrusted::UnknownCa),
        ("bad/revoked", Untrusted::Revoked),
    ] {
        match dialled_with(shown).await {
            LinkError::PeerUntrusted(reason) => assert_eq!(reason, expected, "{shown}"),
            other => panic!("{shown}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_bad_certificate_of_the_dialler_has_its_own_reason() {
    for (shown, expected) in [
        (None, Untrusted::NoCertificate),
        (Some("bad/expired"), Untrusted::Expired),
        (Some("bad/not-yet-valid"), Untrusted::NotYetValid),
        (Some("bad/no-uri"), Untrusted::NoNodeUri),
        (Some("bad/wrong-cluster"), Untrusted::OtherCluster),
        (Some("bad/wrong-ca"), Untrusted::UnknownCa),
        (Some("bad/revoked"), Untrusted::Revoked),
    ] {
        match dialling_with(shown).await {
            LinkError::SelfUntrusted(reason) => assert_eq!(reason, expected, "{shown:?}"),
            other => panic!("{shown:?}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_link_that_is_refused_says_so_instead_of_being_up() {
    let pair = Pair::new();
    let posing = bind(&pair.runtime, pair.certs.posing("bad/expired"), options());
    let link = link(&posing, &pair.coordinator, Wanted::Coordinator);
    let error = link.connect(None).await.expect_err("refused");
    assert!(
        matches!(error, LinkError::SelfUntrusted(Untrusted::Expired)),
        "{error:?}"
    );
    assert_eq!(link.peer(), None);
    assert!(error.hint().is_some());
    assert_eq!(error.kind(), "self-untrusted");
}

#[tokio::test]
async fn a_node_of_another_role_is_not_asked() {
    let (certs, runtime) = (Certs::new(), Runtime::start().expect("a thread"));
    let worker = bind(&runtime, certs.load("dev/worker/w1"), options());
    for (other, wanted, good) in [
        ("dev/worker/w2", Wanted::Coordinator, false),
        ("bad/wrong-role", Wanted::Coordinator, false),
        ("bad/wrong-role", Wanted::Peer, false),
        ("dev/worker/w2", Wanted::Peer, true),
        ("dev/coordinator/c1", Wanted::Peer, true),
    ] {
        let server = bind(&runtime, certs.load(other), options());
        server.serve(Arc::new(Node::default()));
        let link = link(&worker, &server, wanted);
        match link.connect(None).await {
            Ok(()) => assert!(good, "{other} {wanted}"),
            Err(LinkError::WrongNode { uri, .. }) => {
                assert!(!good, "{other} {wanted}");
                assert_eq!(&uri, server.identity().uri());
            }
            Err(other) => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn another_version_of_the_protocol_is_told_apart() {
    let pair = Pair::new();
    let client = raw(None);
    let mut tls = trust::client_config(&pair.certs.load("dev/worker/w1"));
    tls.alpn_protocols = vec![b"larder/9".to_vec()];
    let error = raw_dial(&client, tls, &pair.coordinator)
        .await
        .expect_err("refused");
    assert!(matches!(error, LinkError::OtherVersion), "{error:?}");
    assert!(error.to_string().contains("version"), "{error}");
}

#[test]
fn a_throwaway_identity_does_not_bind_beyond_loopback() {
    let certs = Certs::new();
    for name in ["dev/worker/w1", "bad/wrong-cluster"] {
        let addr = "0.0.0.0:0".parse().expect("an address");
        let bound = Port::bind(addr, certs.load(name).uri().cluster());
        assert!(matches!(bound, Err(BindError::Throwaway { .. })), "{name}");
    }
}

fn pair_of(dir: &Path) -> (Vec<CertificateDer<'static>>, PrivatePkcs8KeyDer<'static>) {
    let read = |file| fs::read(dir.join(file)).expect("there");
    let cert = CertificateDer::from_pem_slice(&read("cert.pem")).expect("PEM");
    let key = PrivatePkcs8KeyDer::from_pem_slice(&read("key.pem")).expect("PEM");
    (vec![cert], key)
}

/// Takes everyone and shows what it is told to.
fn raw_server(dir: &Path) -> rustls::ServerConfig {
    let (chain, key) = pair_of(dir);
    let mut config = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_no_client_auth()
        .with_single_cert(chain, key.into())
        .expect("a pair");
    config.alpn_protocols = vec![crate::proto::wire::ALPN.to_vec()];
    config
}

fn raw_client(dir: Option<&Path>) -> rustls::ClientConfig {
    let builder = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Everyone));
    let mut config = match dir.map(pair_of) {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => builder
            .with_client_auth_cert(chain, key.into())
            .expect("a pair"),
    };
    config.alpn_protocols = vec![crate::proto::wire::ALPN.to_vec()];
    config
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Believes everyone.
#[derive(Debug)]
struct Everyone;

impl rustls::client::danger::ServerCertVerifier for Everyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}
