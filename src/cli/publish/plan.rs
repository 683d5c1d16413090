//! From paths to checked definitions. All problems of all files come together.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use larder::catalog::MAX_NAMES_PER_PUBLISH;
use larder::spec::{SpecHash, SpecName, Syntax, SyntaxError};

use super::tree::{self, Found, Step};
use crate::cli::complaint::Complaint;
use crate::cli::exit::Exit;

/// Problems that are shown; the rest is counted.
const MAX_SHOWN: usize = 20;

/// What a definition must be and how it is named.
pub(super) struct Rules {
    pub(super) name: Option<SpecName>,
    pub(super) prefix: Option<String>,
    pub(super) syntax: Syntax,
    pub(super) max_len: u64,
}

/// A file that may be published. Its body is read again when it is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Definition {
    pub(super) path: PathBuf,
    pub(super) name: SpecName,
    pub(super) hash: SpecHash,
    pub(super) len: u64,
}

/// Finds, names and checks everything, in order of name.
pub(super) fn gather(
    paths: &[PathBuf],
    rules: &Rules,
    on_skip: &mut dyn FnMut(&Path, &str),
) -> Result<Vec<Definition>, Complaint> {
    let mut plan = Plan {
        rules,
        named: BTreeMap::new(),
        problems: Vec::new(),
    };
    for path in paths {
        plan.add(path, on_skip)?;
    }
    if rules.name.is_some() && plan.named.len() > 1 {
        let message = format!("`--name` goes with one file, not {}", plan.named.len());
        return Err(Complaint::new(Exit::Usage, message));
    }
    if plan.named.is_empty() && plan.problems.is_empty() {
        let message = "there is no .yaml or .yml file to publish";
        return Err(Complaint::new(Exit::BadInput, message));
    }
    plan.check()
}

struct Plan<'a> {
    rules: &'a Rules,
    named: BTreeMap<SpecName, PathBuf>,
    problems: Vec<String>,
}

impl Plan<'_> {
    fn add(&mut self, path: &Path, on_skip: &mut dyn FnMut(&Path, &str)) -> Result<(), Complaint> {
        let metadata = match std::fs::metadata(path) {
            Ok(metadata) => metadata,
            Err(error) => {
                self.problems.push(format!("{}: {error}", path.display()));
                return Ok(());
            }
        };
        if metadata.is_dir() {
            return self.add_directory(path, on_skip);
        }
        if !metadata.is_file() {
            self.problems
                .push(format!("{}: it is no regular file", path.display()));
            return Ok(());
        }
        let given = self.rules.name.as_ref().map(ToString::to_string);
        let stem = path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned());
        self.name(path.to_owned(), &given.or(stem).unwrap_or_default());
        self.check_count()
    }

    fn add_directory(
        &mut self,
        root: &Path,
        on_skip: &mut dyn FnMut(&Path, &str),
    ) -> Result<(), Complaint> {
        if self.rules.name.is_some() {
            let message = "`--name` goes with a file, not with a directory";
            return Err(Complaint::new(Exit::Usage, message).hint("`--prefix` goes with both"));
        }
        let mut result = Ok(());
        tree::walk(root, &mut |step| {
            match step {
                Step::File(Found { path, relative }) => {
                    // A name that is not UTF-8 keeps a character that no name may have.
                    self.name(path, &relative.to_string_lossy());
                    result = self.check_count();
                }
                Step::Skipped(path, why) => on_skip(&path, why),
                Step::Failed(path, error) => {
                    self.problems.push(format!("{}: {error}", path.display()));
                }
            }
            result.is_ok()
        });
        result
    }

    fn name(&mut self, path: PathBuf, text: &str) {
        let text = match &self.rules.prefix {
            Some(prefix) => format!("{prefix}/{text}"),
            None => text.to_owned(),
        };
        let name: SpecName = match text.parse() {
            Ok(name) => name,
            Err(error) => {
                self.problems.push(format!("{}: {error}", path.display()));
                return;
            }
        };
        if let Some(other) = self.named.get(&name) {
            let (other, path) = (other.display(), path.display());
            self.problems
                .push(format!("{other} and {path} are both named `{name}`"));
            return;
        }
        self.named.insert(name, path);
    }

    fn check_count(&self) -> Result<(), Complaint> {
        if self.named.len() <= MAX_NAMES_PER_PUBLISH {
            return Ok(());
        }
        let message = format!("there are more than {MAX_NAMES_PER_PUBLISH} definitions");
        Err(Complaint::new(Exit::BadInput, message).hint("publish sub-folders with `--prefix`"))
    }

    /// Reads and checks every file.
    fn check(mut self) -> Result<Vec<Definition>, Complaint> {
        let mut definitions = Vec::with_capacity(self.named.len());
        for (name, path) in std::mem::take(&mut self.named) {
            match self.definition(name, path) {
                Ok(definition) => definitions.push(definition),
                Err(problem) => self.problems.push(problem),
            }
        }
        match self.problems.is_empty() {
            true => Ok(definitions),
            false => Err(bad_input(self.problems)),
        }
    }

    fn definition(&self, name: SpecName, path: PathBuf) -> Result<Definition, String> {
        let shown = path.display();
        let bytes = read(&path, self.rules.max_len).map_err(|error| format!("{shown}: {error}"))?;
        let checked = self.rules.syntax.check(&bytes, self.rules.max_len);
        checked.map_err(|error| at_place(&path, &error))?;
        Ok(Definition {
            hash: SpecHash::of(&bytes),
            len: bytes.len() as u64,
            name,
            path,
        })
    }
}

/// At most one byte more than `max_len`, which is enough to see that it is too long.
pub(super) fn read(path: &Path, max_len: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    if size > max_len {
        let reason = format!("it has {size} bytes, at most {max_len} are allowed");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, reason));
    }
    file.take(max_len + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// `file:line:column: reason`, as editors understand it.
fn at_place(path: &Path, error: &SyntaxError) -> String {
    let path = path.display();
    match error {
        SyntaxError::Yaml {
            line,
            column,
            reason,
        } => format!("{path}:{line}:{column}: {reason}"),
        other => format!("{path}: {other}"),
    }
}

fn bad_input(mut problems: Vec<String>) -> Complaint {
    let count = problems.len();
    let message = match count {
        1 => "one file cannot be published, so nothing was".to_owned(),
        _ => format!("{count} files cannot be published, so nothing was"),
    };
    if count > MAX_SHOWN {
        problems.truncate(MAX_SHOWN);
        problems.push(format!("and {} more", count - MAX_SHOWN));
    }
    Complaint::new(Exit::BadInput, message).details(problems)
}
