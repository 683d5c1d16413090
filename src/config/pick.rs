use std::path::{Path, PathBuf};

use super::layer::{Merged, split};
use super::{
    Address, ConfigError, Effective, Field, IdentityPaths, Invalid, Kind, Loaded, Origin, Sources,
    Surroundings, default, value,
};

/// Takes options out of what was merged, one after the other, and remembers what came out.
pub(super) struct Picker<'a> {
    merged: Merged,
    kind: Kind,
    surroundings: &'a Surroundings,
    effective: Vec<Effective>,
}

impl<'a> Picker<'a> {
    pub(super) fn new(sources: &'a Sources, kind: Kind) -> Result<Self, ConfigError> {
        Ok(Self {
            merged: sources.merge(kind)?,
            kind,
            surroundings: &sources.surroundings,
            effective: Vec::new(),
        })
    }

    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    /// An option with a default.
    pub(super) fn or<T>(
        &mut self,
        field: Field,
        default: &str,
        parse: impl Fn(&str) -> Result<T, Invalid>,
    ) -> Result<T, ConfigError> {
        let (text, origin) = self
            .take(field)
            .unwrap_or_else(|| (default.to_owned(), Origin::Default));
        let value = parse(&text).map_err(|error| invalid(field, &text, &origin, error))?;
        self.note(field, vec![text], origin);
        Ok(value)
    }

    /// An option without a default.
    pub(super) fn optional<T>(
        &mut self,
        field: Field,
        parse: impl Fn(&str) -> Result<T, Invalid>,
    ) -> Result<Option<T>, ConfigError> {
        let Some((text, origin)) = self.take(field) else {
            self.note(field, Vec::new(), Origin::Default);
            return Ok(None);
        };
        let value = parse(&text).map_err(|error| invalid(field, &text, &origin, error))?;
        self.note(field, vec![text], origin);
        Ok(Some(value))
    }

    /// A list of addresses; empty when nobody gave one.
    pub(super) fn list(&mut self, field: Field, max: usize) -> Result<Vec<Address>, ConfigError> {
        let (texts, origin) = self
            .merged
            .remove(&field)
            .unwrap_or_else(|| (Vec::new(), Origin::Default));
        let texts: Vec<_> = texts.iter().flat_map(|text| split(field, text)).collect();
        if texts.len() > max {
            return Err(ConfigError::TooMany {
                field,
                count: texts.len(),
                max,
                origin,
            });
        }
        let mut addresses = Vec::with_capacity(texts.len());
        for text in &texts {
            let parsed = text.parse::<Address>();
            let address = parsed.map_err(|error| invalid(field, text, &origin, error))?;
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        self.note(field, texts, origin);
        Ok(addresses)
    }

    /// A path without a default.
    pub(super) fn path(&mut self, field: Field) -> Result<Option<PathBuf>, ConfigError> {
        let found = self.take(field);
        let Some((text, origin)) = found else {
            self.note(field, Vec::new(), Origin::Default);
            return Ok(None);
        };
        self.place(field, &text, origin).map(Some)
    }

    /// A path with a default that depends on where the process runs.
    pub(super) fn path_or(
        &mut self,
        field: Field,
        default: impl Fn(&Surroundings, Kind) -> Option<PathBuf>,
    ) -> Result<PathBuf, ConfigError> {
        if let Some((text, origin)) = self.take(field) {
            return self.place(field, &text, origin);
        }
        let path = default(self.surroundings, self.kind).ok_or(ConfigError::NoHome { field })?;
        self.note(field, vec![path.display().to_string()], Origin::Default);
        Ok(path)
    }

    /// The identity; every daemon has one.
    pub(super) fn identity(&mut self) -> Result<IdentityPaths, ConfigError> {
        let found = self.identity_if_any()?;
        found.ok_or_else(|| ConfigError::NoIdentity {
            kind: self.kind,
            searched: default::certs(self.surroundings, self.kind),
        })
    }

    /// The identity, if there is an identity directory or every single file is given.
    pub(super) fn identity_if_any(&mut self) -> Result<Option<IdentityPaths>, ConfigError> {
        let directory = self.certs()?;
        let files = (
            self.file(&directory, Field::Cert, "cert.pem")?,
            self.file(&directory, Field::Key, "key.pem")?,
            self.file(&directory, Field::Ca, "ca.pem")?,
            self.file(&directory, Field::Trust, "trust.yaml")?,
        );
        let head_key = match self.kind {
            Kind::Coordinator => self.file(&directory, Field::HeadKey, "head.key")?,
            Kind::Worker | Kind::Client => None,
        };
        let allow = self.or(Field::AllowGroupReadableKey, "false", value::boolean)?;
        let (Some(cert), Some(key), Some(ca), Some(trust)) = files else {
            return Ok(None);
        };
        Ok(Some(IdentityPaths {
            cert,
            key,
            ca,
            trust,
            head_key,
            allow_group_readable_key: allow,
        }))
    }

    /// One file of the identity: the one given, else the one in the directory.
    fn file(
        &mut self,
        directory: &Option<PathBuf>,
        field: Field,
        name: &str,
    ) -> Result<Option<PathBuf>, ConfigError> {
        if self.merged.contains_key(&field) {
            return self.path(field);
        }
        let usual = directory.as_deref().map(|dir| dir.join(name));
        let texts = usual.iter().map(|path| path.display().to_string());
        self.note(field, texts.collect(), Origin::Default);
        Ok(usual)
    }

    /// The identity directory: the one given, else the first usual one that has a certificate.
    fn certs(&mut self) -> Result<Option<PathBuf>, ConfigError> {
        if let Some(given) = self.path(Field::Certs)? {
            return Ok(Some(given));
        }
        let usual = default::certs(self.surroundings, self.kind);
        let found = usual.into_iter().find(|dir| dir.join("cert.pem").is_file());
        if let (Some(dir), Some(last)) = (&found, self.effective.last_mut()) {
            last.values.push(dir.display().to_string());
        }
        Ok(found)
    }

    pub(super) fn loaded<T>(self, config: T) -> Loaded<T> {
        let mut effective = self.effective;
        effective.sort_by_key(|entry| entry.field);
        Loaded { config, effective }
    }

    fn place(&mut self, field: Field, text: &str, origin: Origin) -> Result<PathBuf, ConfigError> {
        if text.is_empty() || text.contains('\0') {
            let error = Invalid("a path is needed".into());
            return Err(invalid(field, text, &origin, error));
        }
        let is_word = field == Field::Store && text == "none";
        let path = match &origin {
            Origin::File(file) if !is_word => beside(file, text),
            _ => PathBuf::from(text),
        };
        self.note(field, vec![path.display().to_string()], origin);
        Ok(path)
    }

    /// The strongest text of an option that is no list.
    fn take(&mut self, field: Field) -> Option<(String, Origin)> {
        let (texts, origin) = self.merged.remove(&field)?;
        Some((texts.into_iter().next_back()?, origin))
    }

    fn note(&mut self, field: Field, values: Vec<String>, origin: Origin) {
        self.effective.push(Effective {
            field,
            values,
            origin,
        });
    }
}

fn beside(file: &Path, text: &str) -> PathBuf {
    match file.parent() {
        Some(directory) => directory.join(text),
        None => text.into(),
    }
}

fn invalid(field: Field, value: &str, origin: &Origin, Invalid(reason): Invalid) -> ConfigError {
    ConfigError::Value {
        field,
        value: value.to_owned(),
        origin: origin.clone(),
        reason,
    }
}
