//! Putting answers and failures into HTTP.

use axum::Json;
use axum::body::Body;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH, RETRY_AFTER};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};

use super::MAX_HOPS_LISTED;
use super::json::ErrorJson;
use crate::answer::{Answer, Failure, Freshness, Mode, Target};
use crate::proto::code::Code;
use crate::spec::SpecHash;

/// Headers of an answer, beside `ETag`.
pub(super) mod header {
    use axum::http::HeaderName;

    pub(in super::super) const CATALOG: HeaderName = HeaderName::from_static("larder-catalog");
    pub(in super::super) const EPOCH: HeaderName = HeaderName::from_static("larder-epoch");
    pub(in super::super) const REVISION: HeaderName = HeaderName::from_static("larder-revision");
    pub(in super::super) const RECORD_REVISION: HeaderName =
        HeaderName::from_static("larder-record-revision");
    pub(in super::super) const MODE: HeaderName = HeaderName::from_static("larder-mode");
    /// What a read got that said nothing of freshness, such as `bounded:60s`.
    pub(in super::super) const DEFAULT_FRESHNESS: HeaderName =
        HeaderName::from_static("larder-default-freshness");
    pub(in super::super) const SOURCE: HeaderName = HeaderName::from_static("larder-source");
    pub(in super::super) const AGE_US: HeaderName = HeaderName::from_static("larder-age-us");
    pub(in super::super) const TOOK_US: HeaderName = HeaderName::from_static("larder-took-us");
    pub(in super::super) const FAILED_HOPS: HeaderName =
        HeaderName::from_static("larder-failed-hops");
    /// One per failed hop, as JSON.
    pub(in super::super) const FAILED_HOP: HeaderName =
        HeaderName::from_static("larder-failed-hop");
}

/// The name does not exist, and the proof of it is in the headers.
pub(super) const ABSENT: &str = "absent";
/// No route has this path.
pub(super) const NO_SUCH_PATH: &str = "no-such-path";
/// The path has no such method.
pub(super) const WRONG_METHOD: &str = "wrong-method";
/// The node cannot do its work now.
pub(super) const NOT_READY: &str = "not-ready";
/// A body took longer than [`BODY_TIMEOUT`](super::BODY_TIMEOUT).
pub(super) const SLOW_BODY: &str = "slow-body";

/// Seconds after which a client that was told `busy` may try again.
const RETRY_AFTER_S: &str = "1";

/// The one status of a failure's code.
pub(super) fn status_of(code: &str) -> StatusCode {
    match code {
        "invalid" | "bad-frame" => StatusCode::BAD_REQUEST,
        "not-allowed" => StatusCode::FORBIDDEN,
        ABSENT | NO_SUCH_PATH | "not-found" | "future-revision" => StatusCode::NOT_FOUND,
        WRONG_METHOD => StatusCode::METHOD_NOT_ALLOWED,
        SLOW_BODY => StatusCode::REQUEST_TIMEOUT,
        "missing-body" | "key-reused" => StatusCode::CONFLICT,
        "compacted" => StatusCode::GONE,
        "expect-failed" => StatusCode::PRECONDITION_FAILED,
        "too-large" => StatusCode::PAYLOAD_TOO_LARGE,
        "busy" | "draining" | "no-catalog" | "no-freshness-proof" | "not-held" | "no-bytes"
        | "wrong-catalog" | "quarantined" | "unreachable" | NOT_READY => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        "deadline" => StatusCode::GATEWAY_TIMEOUT,
        "disk-full" => StatusCode::INSUFFICIENT_STORAGE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = status_of(&self.code);
        let retry = self.code == Code::Busy.as_str();
        let mut response = (status, Json(ErrorJson { error: self })).into_response();
        if retry {
            let after = HeaderValue::from_static(RETRY_AFTER_S);
            response.headers_mut().insert(RETRY_AFTER, after);
        }
        response
    }
}

/// A request that makes no sense.
pub(super) fn invalid(message: impl Into<String>) -> Failure {
    Failure::new(Code::Invalid.as_str(), message)
}

/// A body beyond its limit.
pub(super) fn too_large(limit: u64) -> Failure {
    Failure::new(
        Code::TooLarge.as_str(),
        format!("the body is too long, at most {limit} bytes are allowed"),
    )
}

/// The answer to a read: bytes, `304`, or an absence, each with its proof.
pub(super) fn answer(target: &Target, answer: Answer, asked: &HeaderMap) -> Response {
    let proof = proof_headers(&answer);
    let cache = cache_control(answer.proof.mode);
    let mut response = match answer.spec {
        None => absent(target).into_response(),
        Some(spec) => {
            let mut response = if none_match(asked, spec.hash()) {
                StatusCode::NOT_MODIFIED.into_response()
            } else {
                let yaml = HeaderValue::from_static("application/yaml");
                ([(CONTENT_TYPE, yaml)], Body::from(spec.bytes().clone())).into_response()
            };
            insert(
                response.headers_mut(),
                ETAG,
                &format!("\"{}\"", spec.hash()),
            );
            response
        }
    };
    let cache = HeaderValue::from_static(cache);
    response.headers_mut().insert(CACHE_CONTROL, cache);
    response.headers_mut().extend(proof);
    response
}

/// The same to a read that said nothing of freshness: it is told what it got instead.
pub(super) fn answer_as_configured(
    target: &Target,
    (answer, freshness): (Answer, Freshness),
    asked: &HeaderMap,
) -> Response {
    let mut response = self::answer(target, answer, asked);
    insert(
        response.headers_mut(),
        header::DEFAULT_FRESHNESS,
        &freshness.to_string(),
    );
    response
}

fn absent(target: &Target) -> Failure {
    let mut failure = Failure::new(ABSENT, format!("there is no `{target}`"));
    if let Target::Name(name) = target {
        failure.name = Some(name.clone());
    }
    failure
}

/// What may be kept is still asked for again, since a name's meaning changes at any moment.
fn cache_control(mode: Mode) -> &'static str {
    match mode {
        Mode::Lease | Mode::Asked | Mode::At | Mode::AtLeast | Mode::Bounded => "no-cache",
        Mode::Pinned => "max-age=31536000, immutable",
    }
}

/// Whether `If-None-Match` names this hash. The comparison is the weak one.
fn none_match(asked: &HeaderMap, hash: SpecHash) -> bool {
    let tag = format!("\"{hash}\"");
    let lines = asked.get_all(IF_NONE_MATCH).into_iter();
    let tags = lines
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','))
        .map(str::trim);
    let mut tags = tags.map(|one| one.strip_prefix("W/").unwrap_or(one));
    tags.any(|one| one == "*" || one == tag)
}

fn proof_headers(answer: &Answer) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let proof = &answer.proof;
    if let Some(snapshot) = proof.snapshot {
        insert(&mut headers, header::CATALOG, &snapshot.catalog.to_string());
        insert(&mut headers, header::EPOCH, &snapshot.epoch.to_string());
        insert(&mut headers, header::REVISION, &snapshot.rev.to_string());
    }
    if let Some(rev) = proof.record_rev {
        insert(&mut headers, header::RECORD_REVISION, &rev.to_string());
    }
    insert(&mut headers, header::MODE, &proof.mode.to_string());
    insert(&mut headers, header::SOURCE, &proof.source.to_string());
    insert(&mut headers, header::AGE_US, &proof.age_us.to_string());
    let took_us = u64::try_from(answer.took.as_micros()).unwrap_or(u64::MAX);
    insert(&mut headers, header::TOOK_US, &took_us.to_string());
    insert(
        &mut headers,
        header::FAILED_HOPS,
        &answer.failed.len().to_string(),
    );
    for failed in answer.failed.iter().take(MAX_HOPS_LISTED) {
        if let Ok(json) = serde_json::to_string(failed)
            && let Ok(value) = HeaderValue::from_str(&ascii(&json))
        {
            headers.append(header::FAILED_HOP, value);
        }
    }
    headers
}

/// Writes what no header may hold as JSON escapes; it stands only inside JSON strings.
fn ascii(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        if c.is_ascii() && !c.is_ascii_control() {
            out.push(c);
        } else {
            let mut units = [0; 2];
            for unit in c.encode_utf16(&mut units) {
                out.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    out
}

/// Leaves a header out whose value cannot stand in one, such as an address with a line break.
fn insert(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(lines: &[&str], hash: SpecHash) -> bool {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(IF_NONE_MATCH, line.parse().expect("a header value"));
        }
        none_match(&headers, hash)
    }

    #[test]
    fn if_none_match_takes_lists_weak_tags_and_a_star() {
        let hash = SpecHash::of(b"a");
        let other = SpecHash::of(b"b");
        assert!(matches(&[&format!("\"{hash}\"")], hash));
        assert!(matches(&[&format!("\"{other}\" , W/\"{hash}\"")], hash));
        assert!(matches(
            &[&format!("\"{other}\""), &format!("\"{hash}\"")],
            hash
        ));
        assert!(matches(&["*"], hash));
        assert!(!matches(&[], hash));
        assert!(!matches(&[&format!("\"{other}\"")], hash));
        assert!(!matches(&[&hash.to_string()], hash));
    }

    #[test]
    fn every_code_of_the_wire_has_a_status_of_its_own_kind() {
        for &code in Code::ALL {
            let expected = match code {
                Code::BadFrame | Code::Invalid => 400,
                Code::NotAllowed => 403,
                Code::NotFound | Code::Future => 404,
                Code::MissingBody | Code::KeyReused => 409,
                Code::Compacted => 410,
                Code::Expect => 412,
                Code::TooLarge => 413,
                Code::Disk | Code::Damaged | Code::Internal => 500,
                Code::NoCatalog | Code::Busy | Code::Draining => 503,
                Code::DiskFull => 507,
            };
            assert_eq!(status_of(code.as_str()).as_u16(), expected, "{code}");
        }
    }

    #[test]
    fn a_hop_with_any_text_fits_a_header() {
        let text = ascii("{\"reason\":\"näh\u{1f600}\u{7f}\"}");
        assert!(text.is_ascii() && !text.contains('\u{7f}'));
        let back: serde_json::Value = serde_json::from_str(&text).expect("still JSON");
        assert_eq!(back["reason"], "näh\u{1f600}\u{7f}");
    }
}
