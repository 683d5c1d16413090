use std::io;
use std::path::PathBuf;

use super::{Field, Kind, Origin};

/// Why there is no configuration. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A value that its option does not take.
    #[error("`{field}` cannot be `{value}` ({origin}): {reason}")]
    Value {
        /// The option.
        field: Field,
        /// Its text.
        value: String,
        /// Where the text came from.
        origin: Origin,
        /// What is allowed.
        reason: String,
    },
    /// More values than an option takes.
    #[error("`{field}` has {count} values ({origin}), at most {max} are allowed")]
    TooMany {
        /// The option.
        field: Field,
        /// How many values it has.
        count: usize,
        /// How many it may have.
        max: usize,
        /// Where they came from.
        origin: Origin,
    },
    /// An option that must be set is not.
    #[error("`{field}` is not set")]
    NotSet {
        /// The option.
        field: Field,
        /// What to write.
        hint: &'static str,
    },
    /// A file has a key that is no option there.
    #[error("{}: `{key}` is no option{}", path.display(), of(*section))]
    Unknown {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// The section that it stands in; `None` at the top.
        section: Option<Kind>,
        /// The most similar option.
        nearest: Option<&'static str>,
    },
    /// A file holds YAML of another shape.
    #[error("{}: {reason}", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A file is not YAML.
    #[error("{} is not YAML", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A file could not be read.
    #[error("cannot read the configuration file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A default depends on a home directory and there is none.
    #[error("`{field}` is not set, and without HOME it has no default")]
    NoHome {
        /// The option.
        field: Field,
    },
    /// No identity directory was found.
    #[error(
        "no identity directory for a {kind} was found, looked in {}",
        list(searched)
    )]
    NoIdentity {
        /// Whose.
        kind: Kind,
        /// Where it was looked for.
        searched: Vec<PathBuf>,
    },
}

impl ConfigError {
    /// Whether it is about certificates.
    pub fn is_about_identity(&self) -> bool {
        matches!(self, Self::NoIdentity { .. })
    }

    /// What a person can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NotSet { hint, .. } => Some((*hint).into()),
            Self::Unknown { nearest, .. } => nearest.map(|name| format!("did you mean `{name}`?")),
            Self::NoHome { field } => Some(match field.variable() {
                Some(variable) => format!("give {} or {variable}", field.flag()),
                None => format!("give {}", field.flag()),
            }),
            Self::NoIdentity { .. } => Some(
                "`larder certs issue` makes one; give it with `--certs DIR` or LARDER_CERTS".into(),
            ),
            Self::Value { .. }
            | Self::TooMany { .. }
            | Self::Shape { .. }
            | Self::Syntax { .. }
            | Self::Read { .. } => None,
        }
    }
}

fn of(section: Option<Kind>) -> String {
    section.map_or_else(String::new, |kind| format!(" of a {kind}"))
}

fn list(paths: &[PathBuf]) -> String {
    let paths: Vec<_> = paths
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    paths.join(", ")
}
