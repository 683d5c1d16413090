use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::{ConfigError, Field, Kind, default};

/// Longest configuration file in bytes; a hundred times what one with every option needs.
const MAX_FILE_LEN: u64 = 1 << 20;

/// Options as texts, from one place. Several texts are a list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options(BTreeMap<Field, Vec<String>>);

impl Options {
    /// Sets one option; `None` leaves it as it is.
    pub fn set(&mut self, field: Field, value: Option<impl ToString>) -> &mut Self {
        if let Some(value) = value {
            self.0.insert(field, vec![value.to_string()]);
        }
        self
    }

    /// Sets an option that is a list; an empty one leaves it as it is.
    pub fn set_list(&mut self, field: Field, values: &[String]) -> &mut Self {
        if !values.is_empty() {
            self.0.insert(field, values.to_vec());
        }
        self
    }

    /// Switches an option on; `false` leaves it as it is.
    pub fn set_switch(&mut self, field: Field, on: bool) -> &mut Self {
        self.set(field, on.then_some(true))
    }

    /// Whether an option is set.
    pub fn has(&self, field: Field) -> bool {
        self.0.contains_key(&field)
    }
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The command line.
    Flag(&'static str),
    /// An environment variable.
    Environment(String),
    /// A file.
    File(PathBuf),
    /// Nobody said anything.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(flag) => write!(f, "flag {flag}"),
            Self::Environment(variable) => write!(f, "environment {variable}"),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Default => f.write_str("default"),
        }
    }
}

/// What a process finds around it. Everything that configuration depends on and that is not a
/// flag or a file stands here, so that nothing else reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Surroundings {
    /// Environment variables.
    pub variables: BTreeMap<OsString, OsString>,
    /// Whether the process runs as root.
    pub root: bool,
    /// `/etc/larder`.
    pub etc: PathBuf,
    /// `/run/larder`.
    pub run: PathBuf,
    /// `/var/lib/larder`.
    pub var: PathBuf,
}

impl Surroundings {
    /// Those of this process.
    pub fn of_this_process() -> Self {
        Self {
            variables: std::env::vars_os().collect(),
            root: rustix::process::geteuid().is_root(),
            etc: "/etc/larder".into(),
            run: "/run/larder".into(),
            var: "/var/lib/larder".into(),
        }
    }

    /// The absolute directory in a variable: the XDG rules ignore empty and relative ones.
    pub(super) fn directory(&self, variable: &str) -> Option<PathBuf> {
        let path = PathBuf::from(self.variables.get(variable.as_ref() as &std::ffi::OsStr)?);
        path.is_absolute().then_some(path)
    }
}

/// Everything that a configuration is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sources {
    /// Options of the command line.
    pub flags: Options,
    /// The one file to read instead of the usual ones (`--config`); it must exist.
    pub file: Option<PathBuf>,
    /// The rest.
    pub surroundings: Surroundings,
}

impl Sources {
    /// Texts of every option that `kind` knows, the strongest place first for each.
    pub(super) fn merge(&self, kind: Kind) -> Result<Merged, ConfigError> {
        let mut merged = BTreeMap::new();
        for path in self.files() {
            if let Some(text) = read(&path, self.file.is_some())? {
                parse_file(&path, &text, kind, &mut merged)?;
            }
        }
        self.add_environment(kind, &mut merged)?;
        for (&field, texts) in &self.flags.0 {
            merged.insert(field, (texts.clone(), Origin::Flag(field.flag())));
        }
        Ok(merged)
    }

    fn files(&self) -> Vec<PathBuf> {
        let variable = self
            .surroundings
            .variables
            .get(CONFIG_VARIABLE.as_ref() as &std::ffi::OsStr);
        match (&self.file, variable) {
            (Some(file), _) => vec![file.clone()],
            (None, Some(file)) if !file.is_empty() => vec![file.into()],
            _ => default::files(&self.surroundings),
        }
    }

    fn add_environment(&self, kind: Kind, merged: &mut Merged) -> Result<(), ConfigError> {
        for &field in Field::ALL {
            let Some(variable) = field.variable() else {
                continue;
            };
            let Some(value) = self
                .surroundings
                .variables
                .get(variable.as_ref() as &std::ffi::OsStr)
            else {
                continue;
            };
            if value.is_empty() || !field.kinds().contains(&kind) {
                continue;
            }
            let origin = Origin::Environment(variable);
            let Some(text) = value.to_str() else {
                return Err(ConfigError::Value {
                    field,
                    value: value.to_string_lossy().into_owned(),
                    origin,
                    reason: "it is not UTF-8".into(),
                });
            };
            merged.insert(field, (split(field, text), origin));
        }
        Ok(())
    }
}

/// Names a file like `--config`.
const CONFIG_VARIABLE: &str = "LARDER_CONFIG";

/// The strongest texts of each option.
pub(super) type Merged = BTreeMap<Field, (Vec<String>, Origin)>;

/// A list is also written with commas, on the command line, in a variable and in a file.
pub(super) fn split(field: Field, text: &str) -> Vec<String> {
    if !field.is_list() {
        return vec![text.to_owned()];
    }
    let parts = text.split(',').map(str::trim);
    parts
        .filter(|part| !part.is_empty())
        .map(str::to_owned)
        .collect()
}

fn read(path: &Path, required: bool) -> Result<Option<String>, ConfigError> {
    let failed = |source| ConfigError::Read {
        path: path.to_owned(),
        source,
    };
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound && !required => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut text = String::new();
    let read = file.take(MAX_FILE_LEN + 1).read_to_string(&mut text);
    let read = read.map_err(failed)?;
    if read as u64 > MAX_FILE_LEN {
        let reason = format!("it has more than {MAX_FILE_LEN} bytes");
        return Err(failed(io::Error::new(io::ErrorKind::FileTooLarge, reason)));
    }
    Ok(Some(text))
}

/// Options at the top hold for every role that knows them; those in the section of a role win.
fn parse_file(path: &Path, text: &str, kind: Kind, merged: &mut Merged) -> Result<(), ConfigError> {
    let value: serde_yaml::Value =
        serde_yaml::from_str(text).map_err(|source| ConfigError::Syntax {
            path: path.to_owned(),
            source: Box::new(source),
        })?;
    let top = mapping(path, "the file", value)?;
    let mut section = Vec::new();
    for (key, value) in top {
        if let Some(of) = Kind::ALL.into_iter().find(|kind| kind.as_str() == key) {
            let options = mapping(path, &key, value)?;
            check_keys(path, &options, of)?;
            if of == kind {
                section = options;
            }
            continue;
        }
        let field = Field::by_name(&key).ok_or_else(|| unknown(path, &key, None))?;
        let texts = texts(path, field, value)?;
        if field.kinds().contains(&kind) {
            merged.insert(field, (texts, Origin::File(path.to_owned())));
        }
    }
    for (key, value) in section {
        let field = Field::by_name(&key).ok_or_else(|| unknown(path, &key, Some(kind)))?;
        merged.insert(
            field,
            (texts(path, field, value)?, Origin::File(path.to_owned())),
        );
    }
    Ok(())
}

/// A wrong section is an error for every role that reads the file, not only for its own.
fn check_keys(
    path: &Path,
    options: &[(String, serde_yaml::Value)],
    of: Kind,
) -> Result<(), ConfigError> {
    for (key, _) in options {
        let known = Field::by_name(key).is_some_and(|field| field.kinds().contains(&of));
        if !known {
            return Err(unknown(path, key, Some(of)));
        }
    }
    Ok(())
}

fn unknown(path: &Path, key: &str, section: Option<Kind>) -> ConfigError {
    let known = Field::ALL.iter().filter(|field| !field.flag_only());
    let known = known.filter(|field| section.is_none_or(|of| field.kinds().contains(&of)));
    let nearest = known
        .map(|field| (strsim::damerau_levenshtein(field.name(), key), field.name()))
        .min()
        .filter(|&(distance, _)| distance <= 3)
        .map(|(_, name)| name);
    ConfigError::Unknown {
        path: path.to_owned(),
        key: key.to_owned(),
        section,
        nearest,
    }
}

fn mapping(
    path: &Path,
    what: &str,
    value: serde_yaml::Value,
) -> Result<Vec<(String, serde_yaml::Value)>, ConfigError> {
    let wrong = |reason: String| ConfigError::Shape {
        path: path.to_owned(),
        reason,
    };
    match value {
        serde_yaml::Value::Null => Ok(Vec::new()),
        serde_yaml::Value::Mapping(mapping) => mapping
            .into_iter()
            .map(|(key, value)| match key {
                serde_yaml::Value::String(key) => Ok((key, value)),
                _ => Err(wrong(format!("a key of {what} is not a text"))),
            })
            .collect(),
        _ => Err(wrong(format!("{what} must hold `option: value` lines"))),
    }
}

fn texts(path: &Path, field: Field, value: serde_yaml::Value) -> Result<Vec<String>, ConfigError> {
    let wrong = |wants: &str| ConfigError::Shape {
        path: path.to_owned(),
        reason: format!("`{field}` must be {wants}"),
    };
    match value {
        serde_yaml::Value::Sequence(items) if field.is_list() => items
            .into_iter()
            .map(|item| scalar(item).ok_or_else(|| wrong("a list of texts")))
            .collect(),
        value => {
            let text = scalar(value).ok_or_else(|| wrong("one value"))?;
            Ok(split(field, &text))
        }
    }
}

fn scalar(value: serde_yaml::Value) -> Option<String> {
    match value {
        serde_yaml::Value::String(text) => Some(text),
        serde_yaml::Value::Bool(on) => Some(on.to_string()),
        serde_yaml::Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}
