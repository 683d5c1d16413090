//! What every request passes before its route: who may ask at all, and one line for the log.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::http::Method;
use axum::http::header::HOST;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::request::drain;
use super::routes::{PIN, PINS, Surface};
use crate::answer::Failure;
use crate::proto::code::Code;

/// The listener that a request came through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Door {
    /// The file's mode has decided who may come in.
    Unix,
    /// Anyone on this machine, browsers among them: reads only.
    Tcp,
}

/// Lets a request through to its route, or refuses it.
pub(super) async fn pass(
    State(surface): State<Arc<Surface>>,
    request: Request,
    next: Next,
) -> Response {
    let started = Instant::now();
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let response = match refusal(&surface, &request) {
        None => next.run(request).await,
        Some(failure) => {
            drain(request).await;
            failure.into_response()
        }
    };
    let took_us = started.elapsed().as_micros();
    let status = response.status().as_u16();
    tracing::debug!(%method, path, status, took_us, "answered a local request");
    response
}

fn refusal(surface: &Surface, request: &Request) -> Option<Failure> {
    let not_allowed = |message: &str| Failure::new(Code::NotAllowed.as_str(), message);
    if surface.door == Door::Tcp && !is_for_loopback(request) {
        let message = "the `Host` of a request over TCP must be a loopback name or address";
        return Some(not_allowed(message).hint("ask for `localhost` or `127.0.0.1`"));
    }
    if !matches!(
        *request.method(),
        Method::PUT | Method::POST | Method::DELETE
    ) {
        return None;
    }
    if surface.door == Door::Tcp {
        let failure = not_allowed("local HTTP over TCP only reads");
        return Some(failure.hint("use the Unix socket, as with `curl --unix-socket`"));
    }
    // A worker passes pins on, whatever it may publish: it is who runs definitions.
    let path = request.uri().path();
    let is_pin = path == PINS || path.starts_with(PIN);
    if !is_pin && !surface.node.writable() {
        let failure = not_allowed("this node does not take publishes");
        return Some(failure.hint(
            "publish to the coordinator, with a publisher's certificate or on its own socket",
        ));
    }
    None
}

/// A page whose name was made to point at 127.0.0.1 still sends its own name in `Host`.
fn is_for_loopback(request: &Request) -> bool {
    let mut hosts = request.headers().get_all(HOST).into_iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        return false;
    };
    let authority = request.uri().authority();
    host.to_str().is_ok_and(is_loopback_host)
        && authority.is_none_or(|authority| is_loopback_host(authority.as_str()))
}

fn is_loopback_host(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((inside, port)) => match inside.parse::<Ipv6Addr>() {
            Ok(ip) if ip.is_loopback() => ("localhost", port),
            _ => return false,
        },
        None => host.split_at(host.find(':').unwrap_or(host.len())),
    };
    let port_is_fine = match port.strip_prefix(':') {
        Some(digits) => digits.parse::<u16>().is_ok(),
        None => port.is_empty(),
    };
    let is_loopback_ip = || name.parse::<Ipv4Addr>().is_ok_and(|ip| ip.is_loopback());
    port_is_fine && (name.eq_ignore_ascii_case("localhost") || is_loopback_ip())
}

#[cfg(test)]
mod tests {
    use super::is_loopback_host;

    #[test]
    fn only_loopback_names_are_hosts_of_ours() {
        for good in [
            "localhost",
            "LOCALHOST:80",
            "127.0.0.1",
            "127.0.0.1:7460",
            "127.8.9.1:1",
            "[::1]",
            "[::1]:7460",
        ] {
            assert!(is_loopback_host(good), "{good}");
        }
        for bad in [
            "",
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example:80",
            "evil.example:127",
            "10.0.0.1",
            "[::2]",
            "[::1",
            "::1",
            "[::1].evil.example",
            "localhost:evil",
            "localhost@evil.example",
        ] {
            assert!(!is_loopback_host(bad), "{bad}");
        }
    }
}
