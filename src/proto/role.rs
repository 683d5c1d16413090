//! Who may ask what: the table of request x role, as code.

use crate::identity::Role;
use crate::proto::code::{Code, Refusal};
use crate::proto::wire::Request;

/// The kinds of request, without their content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// First on every connection.
    Hello,
    /// Names to records and bodies.
    Resolve,
    /// A hash to its body.
    GetBlob,
    /// Several hashes to their bodies.
    GetBlobs,
    /// Records by prefix.
    List,
    /// History.
    GetLog,
    /// What the node thinks of itself.
    GetStatus,
    /// Which bodies the coordinator lacks.
    Have,
    /// A body.
    PutBlob,
    /// A change of the catalog.
    Publish,
    /// What is about to change, for a lease.
    Watch,
    /// A lease.
    Renew,
    /// An acknowledgement of what is about to change.
    PrepAck,
    /// The end of a lease.
    Leave,
    /// Revisions after one.
    GetDelta,
    /// The whole catalog.
    GetCatalog,
    /// A revision to keep.
    Pin,
    /// A revision to let go.
    Unpin,
    /// What is kept.
    GetPins,
    /// That a worker is there, and who else is.
    Meet,
    /// A worker's list of members.
    GetMembers,
    /// That packets to the coordinator be carried.
    Relay,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 22] = [
        Self::Hello,
        Self::Resolve,
        Self::GetBlob,
        Self::GetBlobs,
        Self::List,
        Self::GetLog,
        Self::GetStatus,
        Self::Have,
        Self::PutBlob,
        Self::Publish,
        Self::Watch,
        Self::Renew,
        Self::PrepAck,
        Self::Leave,
        Self::GetDelta,
        Self::GetCatalog,
        Self::Pin,
        Self::Unpin,
        Self::GetPins,
        Self::Meet,
        Self::GetMembers,
        Self::Relay,
    ];

    /// One lower-case word, for messages and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hello => "hello",
            Self::Resolve => "resolve",
            Self::GetBlob => "get-blob",
            Self::GetBlobs => "get-blobs",
            Self::List => "list",
            Self::GetLog => "get-log",
            Self::GetStatus => "get-status",
            Self::Have => "have",
            Self::PutBlob => "put-blob",
            Self::Publish => "publish",
            Self::Watch => "watch",
            Self::Renew => "renew",
            Self::PrepAck => "prep-ack",
            Self::Leave => "leave",
            Self::GetDelta => "get-delta",
            Self::GetCatalog => "get-catalog",
            Self::Pin => "pin",
            Self::Unpin => "unpin",
            Self::GetPins => "get-pins",
            Self::Meet => "meet",
            Self::GetMembers => "get-members",
            Self::Relay => "relay",
        }
    }
}

impl Request {
    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Hello(_) => Kind::Hello,
            Self::Resolve(_) => Kind::Resolve,
            Self::GetBlob(_) => Kind::GetBlob,
            Self::GetBlobs(_) => Kind::GetBlobs,
            Self::List(_) => Kind::List,
            Self::GetLog(_) => Kind::GetLog,
            Self::GetStatus => Kind::GetStatus,
            Self::Have(_) => Kind::Have,
            Self::PutBlob(_) => Kind::PutBlob,
            Self::Publish(_) => Kind::Publish,
            Self::Watch(_) => Kind::Watch,
            Self::Renew(_) => Kind::Renew,
            Self::PrepAck(_) => Kind::PrepAck,
            Self::Leave(_) => Kind::Leave,
            Self::GetDelta(_) => Kind::GetDelta,
            Self::GetCatalog(_) => Kind::GetCatalog,
            Self::Pin(_) => Kind::Pin,
            Self::Unpin(_) => Kind::Unpin,
            Self::GetPins(_) => Kind::GetPins,
            Self::Meet(_) => Kind::Meet,
            Self::GetMembers(_) => Kind::GetMembers,
            Self::Relay(_) => Kind::Relay,
        }
    }
}

/// Whether a node with role `asker` may send `kind` to one with role `asked`.
///
/// Reading is for every member. Writing is for publishers alone: a worker or even another
/// coordinator that wants to publish needs a publisher's certificate. Leases are for workers,
/// and pins for whoever runs definitions or publishes them.
/// A worker gives its catalog to workers alone: whoever else wants it asks the coordinator.
/// Workers meet each other, and the coordinator tells them of each other.
pub const fn allowed(kind: Kind, asker: Role, asked: Role) -> bool {
    match kind {
        Kind::GetDelta | Kind::GetCatalog if matches!(asked, Role::Worker) => {
            matches!(asker, Role::Worker)
        }
        Kind::Hello
        | Kind::Resolve
        | Kind::GetBlob
        | Kind::GetBlobs
        | Kind::List
        | Kind::GetLog
        | Kind::GetStatus
        | Kind::GetDelta
        | Kind::GetCatalog
        | Kind::GetPins => true,
        Kind::Have | Kind::PutBlob | Kind::Publish => matches!(asker, Role::Publisher),
        Kind::Watch | Kind::Renew | Kind::PrepAck | Kind::Leave | Kind::Meet => {
            matches!(asker, Role::Worker)
        }
        Kind::GetMembers | Kind::Relay => {
            matches!(asker, Role::Worker) && matches!(asked, Role::Worker)
        }
        Kind::Pin | Kind::Unpin => matches!(asker, Role::Worker | Role::Publisher),
    }
}

/// The same as a result.
///
/// # Errors
/// [`Code::NotAllowed`], with a message that names the role.
pub fn check(kind: Kind, asker: Role, asked: Role) -> Result<(), Refusal> {
    if allowed(kind, asker, asked) {
        return Ok(());
    }
    if !Role::ALL.iter().any(|asker| allowed(kind, *asker, asked)) {
        let message = format!("{} is nothing that a {asked} is asked", kind.as_str());
        return Err(Refusal::new(Code::NotAllowed, message));
    }
    let who = match (
        allowed(kind, Role::Worker, asked),
        allowed(kind, Role::Publisher, asked),
    ) {
        (true, true) => "only a worker's or a publisher's may",
        (true, false) => "only a worker's may",
        _ => "only a publisher's may",
    };
    let kind = kind.as_str();
    let message = format!("a {asker} certificate may not send {kind}, {who}");
    Err(Refusal::new(Code::NotAllowed, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_table() {
        use Kind::{
            GetBlob, GetBlobs, GetCatalog, GetDelta, GetLog, GetMembers, GetPins, GetStatus, Have,
            Hello, Leave, List, Meet, Pin, PrepAck, Publish, PutBlob, Relay, Renew, Resolve, Unpin,
            Watch,
        };
        use Role::{Coordinator, Publisher, Reader, Worker};
        let all = [Coordinator, Worker, Publisher, Reader];
        // Who may ask a worker, and who may ask any other node.
        let table: [(&[Kind], &[Role], &[Role]); 6] = [
            (
                &[
                    Hello, Resolve, GetBlob, GetBlobs, List, GetLog, GetStatus, GetPins,
                ],
                &all,
                &all,
            ),
            (&[GetDelta, GetCatalog], &[Worker], &all),
            (&[Have, PutBlob, Publish], &[Publisher], &[Publisher]),
            (&[Watch, Renew, PrepAck, Leave, Meet], &[Worker], &[Worker]),
            (&[GetMembers, Relay], &[Worker], &[]),
            (&[Pin, Unpin], &[Worker, Publisher], &[Worker, Publisher]),
        ];
        let kinds: usize = table.iter().map(|(kinds, ..)| kinds.len()).sum();
        assert_eq!(kinds, Kind::ALL.len());
        let pairs = all.map(|asker| all.map(|asked| (asker, asked)));
        for (kinds, of_worker, of_others) in table {
            for &kind in kinds {
                for (asker, asked) in pairs.into_iter().flatten() {
                    let result = check(kind, asker, asked).map_err(|refusal| refusal.code);
                    let allowed = match asked {
                        Worker => of_worker,
                        _ => of_others,
                    };
                    let expected = match allowed.contains(&asker) {
                        true => Ok(()),
                        false => Err(Code::NotAllowed),
                    };
                    assert_eq!(result, expected, "{kind:?} {asker} -> {asked}");
                }
            }
        }
    }
}
