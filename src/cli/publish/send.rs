use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use larder::answer::Failure;
use larder::api::Api;
use larder::proto::code::Code;
use larder::proto::limit::MAX_HASHES_PER_HAVE;
use larder::proto::wire::{Publish, PublishedRev};
use larder::spec::{Spec, SpecHash, Syntax};
use tokio::task::JoinSet;

use super::plan::{self, Definition};
use super::progress::Progress;
use super::{show_key, wait};
use crate::cli::complaint::Complaint;
use crate::cli::exit::Exit;

/// Bodies on their way at once: enough to fill a long path with small ones, and no more than
/// 256 MiB of memory with the largest.
const MAX_IN_FLIGHT: usize = 16;

/// Sends what the coordinator lacks, then the one change. If it lost bodies in between, they are
/// sent once more.
pub(super) async fn send(
    api: &Arc<dyn Api>,
    definitions: &[Definition],
    request: &Publish,
    verbose: bool,
) -> anyhow::Result<PublishedRev> {
    send_bodies(api, definitions).await?;
    let first = wait::publish(&**api, request, verbose).await;
    let result = match first {
        Err(failure) if failure.code == Code::MissingBody.as_str() => {
            send_bodies(api, definitions).await?;
            wait::publish(&**api, request, verbose).await
        }
        other => other,
    };
    Ok(result.map_err(|failure| with_key(failure, request))?)
}

/// When nobody knows whether it happened, the way out is to repeat it with the same key.
pub(in crate::cli) fn with_key(failure: Failure, request: &Publish) -> Failure {
    let disk = Code::Disk.as_str();
    let unknown = [
        "deadline",
        "unreachable",
        "timed-out",
        "lost",
        "closed",
        disk,
    ];
    match &request.key {
        Some(key) if unknown.contains(&failure.code.as_str()) => failure.hint(format!(
            "it may have happened: repeat the command with `--idempotency-key {}`",
            show_key(key)
        )),
        _ => failure,
    }
}

async fn send_bodies(api: &Arc<dyn Api>, definitions: &[Definition]) -> anyhow::Result<()> {
    let by_hash: BTreeMap<SpecHash, &Definition> =
        definitions.iter().map(|def| (def.hash, def)).collect();
    let hashes: Vec<_> = by_hash.keys().copied().collect();
    let mut missing = Vec::new();
    for hashes in hashes.chunks(MAX_HASHES_PER_HAVE) {
        missing.extend(api.missing(hashes.to_vec()).await?);
    }
    let mut progress = Progress::new(missing.len());
    let mut sending = JoinSet::new();
    for hash in missing {
        // A node that asks for what was not offered gets nothing.
        let Some(definition) = by_hash.get(&hash) else {
            continue;
        };
        while sending.len() >= MAX_IN_FLIGHT {
            finished(sending.join_next().await, &mut progress)?;
        }
        let spec = read_again(definition)?;
        let api = Arc::clone(api);
        // The YAML was checked here already, or not at all if that was asked for.
        sending.spawn(async move { api.put_body(spec, Syntax::AnyText).await });
    }
    while !sending.is_empty() {
        finished(sending.join_next().await, &mut progress)?;
    }
    Ok(())
}

type Joined = Result<Result<(), Failure>, tokio::task::JoinError>;

fn finished(joined: Option<Joined>, progress: &mut Progress) -> anyhow::Result<()> {
    if let Some(joined) = joined {
        joined??;
        progress.step();
    }
    Ok(())
}

/// Bodies are not kept in memory between check and sending: a directory may be larger than that.
fn read_again(definition: &Definition) -> Result<Spec, Complaint> {
    let changed = || {
        let message = format!(
            "{} changed while it was being published",
            definition.path.display()
        );
        Complaint::new(Exit::BadInput, message).hint("nothing was published; run it again")
    };
    let bytes = plan::read(&definition.path, definition.len);
    let bytes = bytes.map_err(|error| changed().because(error))?;
    Spec::verify(definition.hash, Some(definition.len), Bytes::from(bytes)).map_err(|_| changed())
}
