use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use larder::config::{CoordinatorConfig, Field, StoreChoice};
use larder::store::lock::LockError;
use larder::store::vault::{self, RestoreError};

use super::complaint::Complaint;
use super::exit::Exit;
use super::option::GlobalArgs;
use super::screen::Screen;

/// Make a coordinator's store from a backup.
///
/// Every record of the backup is checked; a damaged one is refused and leaves nothing behind.
/// The store must not exist yet or be empty. It starts a new epoch, so that workers that saw
/// later revisions accept what the backup holds.
#[derive(Debug, clap::Args)]
#[command(after_help = "EXAMPLES
  larder restore /backup/larder.journal
  larder restore /backup/larder.journal --store /srv/larder
  age -d larder.age | larder restore -")]
pub(crate) struct Args {
    /// The backup, or `-` for stdin
    #[arg(value_name = "FILE|-")]
    file: PathBuf,
    /// Store directory of the coordinator [env: LARDER_STORE]
    #[arg(long, value_name = "DIR")]
    store: Option<String>,
}

pub(crate) fn run(args: &Args, global: &GlobalArgs, screen: &mut Screen<'_>) -> anyhow::Result<()> {
    let sources = global.sources(|flags| {
        flags.set(Field::Store, args.store.as_ref());
    });
    let StoreChoice::Directory(store) = CoordinatorConfig::load_store(&sources)? else {
        let complaint = Complaint::new(Exit::Usage, "the store is `none`");
        return Err(complaint.hint("give `--store DIR`").into());
    };
    let mut input: Box<dyn Read> = match args.file == Path::new("-") {
        true => Box::new(std::io::stdin().lock()),
        false => Box::new(File::open(&args.file).map_err(|error| {
            let message = format!("cannot read {}", args.file.display());
            Complaint::new(Exit::BadInput, message).because(error)
        })?),
    };
    let restored = restore(&store, &mut *input)?;
    Ok(screen.line(restored)?)
}

/// Fills the store and says in one line what it holds now.
fn restore(store: &Path, mut input: &mut dyn Read) -> anyhow::Result<String> {
    let report = vault::restore(store, &mut input).map_err(|error| {
        let (exit, hint) = match &error {
            RestoreError::NotEmpty { .. } => (Exit::Store, "name a new directory with `--store`"),
            RestoreError::Lock(LockError::Held { .. }) => {
                (Exit::Store, "stop the process that has it first")
            }
            RestoreError::Lock(LockError::OtherRole { .. }) => {
                (Exit::Store, "name another directory with `--store`")
            }
            RestoreError::Lock(LockError::Io { .. }) => {
                (Exit::Store, "check that this user may write there")
            }
            RestoreError::Output(_) => (Exit::Store, "check the disk and its free space"),
            RestoreError::NewerFormat { .. } | RestoreError::Unknown { .. } => (
                Exit::BadInput,
                "use the version of Larder that wrote it, or a newer one",
            ),
            _ => (
                Exit::BadInput,
                "try another backup; nothing was left in the directory",
            ),
        };
        let complaint = Complaint::new(exit, error.to_string()).hint(hint);
        complaint.because(error)
    })?;
    Ok(format!(
        "{}: catalog {}, epoch {}, revision {}, {} names, {} bodies",
        store.display(),
        report.catalog,
        report.epoch,
        report.rev,
        report.names,
        report.bodies
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_cannot_be_made_is_not_blamed_on_a_running_coordinator() {
        // Nobody may make a directory there, not even root.
        let error = restore(Path::new("/proc/larder"), &mut &b""[..]).expect_err("refused");
        let complaint = format!("{:?}", error.downcast_ref::<Complaint>());
        assert!(complaint.contains("may write there"), "{complaint}");
    }
}
