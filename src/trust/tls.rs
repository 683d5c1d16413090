//! The two TLS configurations, which look at the identity anew in every handshake.

use std::sync::{Arc, LazyLock};

use rustls::CipherSuite::TLS13_AES_128_GCM_SHA256;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use rustls::{
    DigitallySignedStruct, DistinguishedName, Error, SignatureScheme, SupportedCipherSuite,
};

use super::{Identity, Untrusted, Usage};
use crate::proto::wire::ALPN;

/// The one provider of cryptography; always passed explicitly.
pub(super) static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    let mut provider = rustls::crypto::ring::default_provider();
    // Its SHA-256 runs in hardware, unlike SHA-384: every handshake makes two dozen keys.
    let is_quick = |suite: &SupportedCipherSuite| suite.suite() == TLS13_AES_128_GCM_SHA256;
    provider.cipher_suites.sort_by_key(|suite| !is_quick(suite));
    Arc::new(provider)
});

/// For the side that is dialled: client certificates required, nothing is ever resumed.
pub(crate) fn server_config(identity: &Identity) -> rustls::ServerConfig {
    let node = Arc::new(Node(identity.clone()));
    let mut config = rustls::ServerConfig::builder_with_provider(PROVIDER.clone())
        .with_protocol_versions(&[&TLS13])
        .expect("ring has TLS 1.3 suites")
        .with_client_cert_verifier(node.clone())
        .with_cert_resolver(node);
    config.alpn_protocols = vec![ALPN.to_vec()];
    // A resumed connection would skip the check of the client's certificate.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    config
}

/// For the side that dials.
pub(crate) fn client_config(identity: &Identity) -> rustls::ClientConfig {
    let node = Arc::new(Node(identity.clone()));
    let mut config = rustls::ClientConfig::builder_with_provider(PROVIDER.clone())
        .with_protocol_versions(&[&TLS13])
        .expect("ring has TLS 1.3 suites")
        .dangerous() // rustls's word for a verifier of one's own
        .with_custom_certificate_verifier(node.clone())
        .with_client_cert_resolver(node);
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config
}

/// Shows the current certificate and checks the peer's against the current trust.
#[derive(Debug)]
struct Node(Identity);

impl Node {
    fn check(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        usage: Usage,
        now: UnixTime,
    ) -> Result<(), Error> {
        let mut chain = Vec::with_capacity(1 + rest.len());
        chain.push(leaf.clone());
        chain.extend_from_slice(rest);
        match self.0.current().trust().check(&chain, usage, now) {
            Ok(_) => Ok(()),
            Err(reason) => {
                metrics::counter!("larder_certificates_refused_total", "reason" => reason.as_str())
                    .increment(1);
                Err(reason.to_tls())
            }
        }
    }
}

/// What both verifiers say of signatures; rustls has two traits for the two sides.
macro_rules! check_signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Err(Untrusted::Malformed.to_tls())
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            let algorithms = &PROVIDER.signature_verification_algorithms;
            verify_tls13_signature(message, cert, signed, algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            PROVIDER
                .signature_verification_algorithms
                .supported_schemes()
        }
    };
}

impl ResolvesServerCert for Node {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.current().certified_key())
    }
}

impl ResolvesClientCert for Node {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.current().certified_key())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl ServerCertVerifier for Node {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(leaf, rest, Usage::Listener, now)
            .map(|()| ServerCertVerified::assertion())
    }

    check_signatures!();
}

impl ClientCertVerifier for Node {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // A node has one certificate; nobody needs a hint which to show.
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(leaf, rest, Usage::Dialler, now)
            .map(|()| ClientCertVerified::assertion())
    }

    check_signatures!();
}
