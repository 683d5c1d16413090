//! Every default in one place. Values are texts, parsed like any other.

use std::path::{Path, PathBuf};

use super::{Kind, Surroundings};

/// UDP port of a coordinator.
pub const COORDINATOR_PORT: u16 = 7457;

/// A fresh install must not be reachable from outside before somebody says so.
pub(super) const COORDINATOR_LISTEN: &str = "127.0.0.1:7457";

/// One above the coordinator's, so that both run on one machine.
pub(super) const WORKER_LISTEN: &str = "127.0.0.1:7458";

/// A thousand definitions of the largest size, or some hundred thousand ordinary ones.
pub(super) const STORE_BUDGET: &str = "1GiB";

pub(super) const DEADLINE: &str = "10s";

/// A dead worker delays a publish by this at most.
pub(super) const LEASE: &str = "6s";

pub(super) const KEEP_LEASE: &str = "on";

/// Peers that find each other help; they never decide what is current.
pub(super) const GOSSIP: &str = "on";

pub(super) const PREFETCH: &str = "used";
pub(super) const RELAY: &str = "on";

pub(super) const UPLOAD_LIMIT: &str = "unlimited";

/// Weaker answers are a decision of the operator.
pub(super) const FRESHNESS: &str = "strict";

pub(super) const MAX_SPEC_LEN: &str = "1MiB";

pub(super) const LOG_FORMAT: &str = "human";

/// Daemons say what they do. What a command meets on its way stands in its own error or answer.
pub(super) const fn log(kind: Kind) -> &'static str {
    match kind {
        Kind::Coordinator | Kind::Worker => "info",
        Kind::Client => "error",
    }
}

/// Files that are read unless `--config` names one; a later one wins.
pub(super) fn files(surroundings: &Surroundings) -> Vec<PathBuf> {
    let system = Some(surroundings.etc.clone());
    let user = user_config(surroundings);
    let directories = system.into_iter().chain(user);
    directories.map(|dir| dir.join("larder.yaml")).collect()
}

/// `/var/lib/larder/<role>` for root, else below the user's state directory.
pub(super) fn store(surroundings: &Surroundings, kind: Kind) -> Option<PathBuf> {
    if surroundings.root {
        return Some(surroundings.var.join(kind.as_str()));
    }
    user_state(surroundings).map(|dir| dir.join(kind.as_str()))
}

/// `/run/larder/<role>.sock` for root, else in the user's runtime directory, else in the state
/// directory.
pub(super) fn socket(surroundings: &Surroundings, kind: Kind) -> Option<PathBuf> {
    let file = format!("{kind}.sock");
    if surroundings.root {
        return Some(surroundings.run.join(file));
    }
    let runtime = surroundings.directory("XDG_RUNTIME_DIR");
    let runtime = runtime.map(|dir| dir.join("larder"));
    let directory = runtime.or_else(|| user_state(surroundings))?;
    Some(directory.join(file))
}

/// Where a daemon's socket may be: the user's own first, then the system's.
pub(super) fn sockets(surroundings: &Surroundings, kind: Kind) -> Vec<PathBuf> {
    let own = socket(surroundings, kind);
    let system = surroundings.run.join(format!("{kind}.sock"));
    let mut found: Vec<_> = own.into_iter().collect();
    if !found.contains(&system) {
        found.push(system);
    }
    found
}

/// Identity directories that are tried in this order. A client uses a publisher's before a
/// reader's, since a publisher may also read.
pub(super) fn certs(surroundings: &Surroundings, kind: Kind) -> Vec<PathBuf> {
    let roles: &[&str] = match kind {
        Kind::Coordinator => &["coordinator"],
        Kind::Worker => &["worker"],
        Kind::Client => &["publisher", "reader"],
    };
    let system = Some(surroundings.etc.clone());
    let user = user_config(surroundings);
    let directories: Vec<_> = system.into_iter().chain(user).collect();
    let below = |dir: &Path, role: &&str| dir.join("certs").join(role);
    roles
        .iter()
        .flat_map(|role| directories.iter().map(move |dir| below(dir, role)))
        .collect()
}

fn user_config(surroundings: &Surroundings) -> Option<PathBuf> {
    let xdg = surroundings.directory("XDG_CONFIG_HOME");
    let home = surroundings.directory("HOME");
    let config = xdg.or_else(|| home.map(|home| home.join(".config")))?;
    Some(config.join("larder"))
}

fn user_state(surroundings: &Surroundings) -> Option<PathBuf> {
    let xdg = surroundings.directory("XDG_STATE_HOME");
    let home = surroundings.directory("HOME");
    let state = xdg.or_else(|| home.map(|home| home.join(".local/state")))?;
    Some(state.join("larder"))
}
