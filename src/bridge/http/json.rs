//! The JSON forms of what `proto::wire` carries; their names are stable.
//!
//! Hashes are `b3:` text, catalog ids and keys are hex. Unknown fields of a request are refused,
//! unknown fields of an answer are ignored, so that an older client reads a newer daemon.

use serde::{Deserialize, Serialize};

use crate::answer::{Failure, RunToken};
use crate::catalog::{CatalogId, Epoch, IdempotencyKey, Revision};
use crate::proto::wire::{
    Listing, Log, LogEntry, Publish, PublishName, PublishedRev, Waited, WireVersion,
};
use crate::spec::hash::{hex, parse_hex};
use crate::spec::{SpecHash, SpecName};

/// Every error's shape.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ErrorJson {
    pub(super) error: Failure,
}

/// Body of `POST /v1/missing`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HaveJson {
    pub(super) hashes: Vec<SpecHash>,
}

/// Answer of `POST /v1/missing`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct MissingJson {
    pub(super) missing: Vec<SpecHash>,
}

/// Answer of `PUT /v1/blobs/{hash}`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct StoredJson {
    pub(super) hash: SpecHash,
    pub(super) len: u64,
}

/// Body of `POST /v1/publish`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PublishJson {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<KeyText>,
    #[serde(default)]
    note: String,
    changes: Vec<ChangeJson>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ChangeJson {
    name: SpecName,
    // A deletion says `null`: a forgotten hash must not delete anything.
    #[serde(deserialize_with = "Option::deserialize")]
    hash: Option<SpecHash>,
    #[serde(default)]
    len: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expect: Option<Revision>,
}

impl From<Publish> for PublishJson {
    fn from(publish: Publish) -> Self {
        let changes = publish.changes.into_iter().map(|change| ChangeJson {
            name: change.name,
            hash: change.hash,
            len: change.len,
            expect: change.expect,
        });
        Self {
            key: publish.key.map(KeyText),
            note: publish.note,
            changes: changes.collect(),
        }
    }
}

impl From<PublishJson> for Publish {
    fn from(json: PublishJson) -> Self {
        let changes = json.changes.into_iter().map(|change| PublishName {
            name: change.name,
            hash: change.hash,
            len: change.len,
            expect: change.expect,
        });
        Self {
            key: json.key.map(|key| key.0),
            note: json.note,
            changes: changes.collect(),
        }
    }
}

/// An idempotency key as 32 hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct KeyText(pub(super) IdempotencyKey);

/// A text that is not a [`KeyText`].
#[derive(Debug, thiserror::Error)]
#[error("a key is 32 hex digits")]
pub(super) struct KeyError;

impl std::fmt::Display for KeyText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl std::str::FromStr for KeyText {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        parse_hex(text).map(Self).ok_or(KeyError)
    }
}

impl Serialize for KeyText {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for KeyText {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Answer of `GET /v1/run-token`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct TokenJson {
    pub(super) token: RunToken,
    catalog: CatalogId,
    epoch: Epoch,
    rev: Revision,
}

impl From<RunToken> for TokenJson {
    fn from(token: RunToken) -> Self {
        let RunToken {
            catalog,
            epoch,
            rev,
        } = token;
        Self {
            token,
            catalog,
            epoch,
            rev,
        }
    }
}

/// Body of `POST /v1/pins`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PinJson {
    pub(super) token: RunToken,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) for_ms: Option<u64>,
}

/// Answer of `POST /v1/publish`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct PublishedJson {
    catalog: CatalogId,
    epoch: Epoch,
    rev: Revision,
    changed: u32,
    #[serde(default)]
    waited: Waited,
}

impl From<PublishedRev> for PublishedJson {
    fn from(published: PublishedRev) -> Self {
        Self {
            catalog: published.catalog,
            epoch: published.epoch,
            rev: published.rev,
            changed: published.changed,
            waited: published.waited,
        }
    }
}

impl From<PublishedJson> for PublishedRev {
    fn from(json: PublishedJson) -> Self {
        Self {
            catalog: json.catalog,
            epoch: json.epoch,
            rev: json.rev,
            changed: json.changed,
            waited: json.waited,
        }
    }
}

/// Answer of `PUT` and `DELETE /v1/specs/{name}`.
#[derive(Debug, Serialize)]
pub(super) struct PublishedOneJson {
    #[serde(flatten)]
    pub(super) published: PublishedJson,
    pub(super) hash: Option<SpecHash>,
}

/// Answer of `GET /v1/specs`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ListingJson {
    catalog: CatalogId,
    epoch: Epoch,
    rev: Revision,
    records: Vec<RecordJson>,
    more: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct RecordJson {
    name: SpecName,
    #[serde(flatten)]
    version: VersionJson,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct VersionJson {
    rev: Revision,
    hash: Option<SpecHash>,
    len: u64,
}

impl From<WireVersion> for VersionJson {
    fn from(wire: WireVersion) -> Self {
        Self {
            rev: wire.rev,
            hash: wire.hash,
            len: wire.len,
        }
    }
}

impl From<VersionJson> for WireVersion {
    fn from(json: VersionJson) -> Self {
        Self {
            rev: json.rev,
            hash: json.hash,
            len: json.len,
        }
    }
}

impl From<Listing> for ListingJson {
    fn from(listing: Listing) -> Self {
        let records = listing
            .records
            .into_iter()
            .map(|(name, version)| RecordJson {
                name,
                version: version.into(),
            });
        Self {
            catalog: listing.catalog,
            epoch: listing.epoch,
            rev: listing.rev,
            records: records.collect(),
            more: listing.more,
        }
    }
}

impl From<ListingJson> for Listing {
    fn from(json: ListingJson) -> Self {
        let records = json.records.into_iter();
        Self {
            catalog: json.catalog,
            epoch: json.epoch,
            rev: json.rev,
            records: records
                .map(|record| (record.name, record.version.into()))
                .collect(),
            more: json.more,
        }
    }
}

/// Answer of `GET /v1/log`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct LogJson {
    catalog: CatalogId,
    epoch: Epoch,
    oldest: Revision,
    entries: Vec<LogEntryJson>,
    more: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct LogEntryJson {
    rev: Revision,
    by: String,
    at_unix_ms: u64,
    note: String,
    changed: u32,
    version: Option<VersionJson>,
}

impl From<Log> for LogJson {
    fn from(log: Log) -> Self {
        let entries = log.entries.into_iter().map(|entry| LogEntryJson {
            rev: entry.rev,
            by: entry.by,
            at_unix_ms: entry.at_unix_ms,
            note: entry.note,
            changed: entry.changed,
            version: entry.version.map(Into::into),
        });
        Self {
            catalog: log.catalog,
            epoch: log.epoch,
            oldest: log.oldest,
            entries: entries.collect(),
            more: log.more,
        }
    }
}

impl From<LogJson> for Log {
    fn from(json: LogJson) -> Self {
        let entries = json.entries.into_iter().map(|entry| LogEntry {
            rev: entry.rev,
            by: entry.by,
            at_unix_ms: entry.at_unix_ms,
            note: entry.note,
            changed: entry.changed,
            version: entry.version.map(Into::into),
        });
        Self {
            catalog: json.catalog,
            epoch: json.epoch,
            oldest: json.oldest,
            entries: entries.collect(),
            more: json.more,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publish(json: &str) -> Result<Publish, String> {
        serde_json::from_str::<PublishJson>(json)
            .map(Into::into)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_publish_reads_as_documented() {
        let hash = SpecHash::of(b"x");
        let json = format!(
            r#"{{"key":"000102030405060708090a0b0c0d0e0f","note":"n","changes":[
                {{"name":"a.yaml","hash":"{hash}","len":1,"expect":0}},
                {{"name":"b","hash":null}}]}}"#
        );
        let got = publish(&json).expect("valid");
        assert_eq!(got.key.map(|key| key[15]), Some(15));
        assert_eq!(got.note, "n");
        let a = PublishName {
            name: "a".parse().expect("valid"),
            hash: Some(hash),
            len: 1,
            expect: Some(Revision::ZERO),
        };
        let b = PublishName {
            name: "b".parse().expect("valid"),
            hash: None,
            len: 0,
            expect: None,
        };
        assert_eq!(got.changes, [a, b]);
    }

    #[test]
    fn a_change_without_a_hash_field_is_no_deletion() {
        let error = publish(r#"{"changes":[{"name":"a"}]}"#).expect_err("no hash");
        assert!(error.contains("missing field `hash`"), "{error}");
    }

    #[test]
    fn unknown_fields_and_bad_values_are_named() {
        for (json, expected) in [
            (r#"{"changes":[],"expect":1}"#, "unknown field `expect`"),
            (r#"{"changes":[],"key":"00"}"#, "32 hex digits"),
            (r#"{"changes":[{"name":"../a","hash":null}]}"#, "segment"),
            (
                r#"{"changes":[{"name":"a","hash":"b3:00"}]}"#,
                "64 hex digits",
            ),
            ("{", "EOF"),
        ] {
            let error = publish(json).expect_err(json);
            assert!(error.contains(expected), "{json}: {error}");
        }
    }
}
