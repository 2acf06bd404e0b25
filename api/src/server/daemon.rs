//! What the server asks of the daemon.
//!
//! In: checked ids, and specs that are valid by themselves (`validate` has passed). Out: resources,
//! or an [`ApiError`]. An implementation may not block the thread, and answers a PUT or DELETE
//! only when the change is durable, or as [`ChangeHow`] says later.

use std::{future::Future, sync::Arc, time::Duration};

use super::MetricsFormat;
use crate::{
    batch::{Applied, DryRun, Wanted},
    error::{ApiError, NotReady, ResourceKind, ResourceRef},
    events::Feed,
    explain::Explanation,
    resources::{
        Adapter, EswitchChange, EswitchSpec, Flow, Guest, GuestSpec, Network, NetworkSpec, Port,
        PortSpec, TornDown,
    },
    snapshot::{Restored, Snapshot},
    trace::{Trace, TraceRequest},
    types::Id,
};

/// What a PUT has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PutOutcome {
    /// The resource is new.
    Created,
    /// The resource was there with another spec.
    Updated,
    /// The resource was there with this spec; nothing was stored, its revision stays.
    Unchanged,
}

impl PutOutcome {
    /// In a word, as in the header `Eswitchd-Outcome`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Updated => "updated",
            Self::Unchanged => "unchanged",
        }
    }
}

/// The answer to a PUT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Put<T> {
    /// What it has done.
    pub outcome: PutOutcome,
    /// The resource as it is now.
    pub resource: T,
}

/// Which flows are asked for: those that match every field that is there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FlowFilter {
    /// The adapter they are on.
    pub adapter: Option<Id>,
    /// The port that is the reason for them.
    pub port: Option<Id>,
    /// The network that is the reason for them.
    pub network: Option<Id>,
}

/// How an eswitch is changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EswitchHow {
    /// Not at all: only say what it would mean.
    pub dry_run: bool,
    /// Even while VFs are in use.
    pub force: bool,
}

/// How a resource is changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChangeHow {
    /// Only in this state.
    pub only_if: Precondition,
    /// To be answered when what the change needs is in the kernel, or after this time with
    /// [`ApiError::NotProgrammed`]. Otherwise when the change is durable.
    pub wait: Option<Duration>,
}

/// In which state a resource must be to be changed (RFC 9110, 13.1.1 and 13.1.2): so that nobody
/// overwrites what he has not seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Precondition {
    /// In any.
    #[default]
    None,
    /// It is there: `If-Match: *`.
    Exists,
    /// It is there in one of these revisions: `If-Match: "7"`.
    Revision(Vec<u64>),
    /// It is not there: `If-None-Match: *`.
    Absent,
    /// Of a batch: each of these is there in this revision, or with 0 is not there.
    Each(Vec<(ResourceRef, u64)>),
}

impl Precondition {
    /// Whether it holds for a resource that has this revision, or is not there.
    ///
    /// # Errors
    /// [`ApiError::Precondition`].
    pub fn check(
        &self,
        kind: ResourceKind,
        id: &Id,
        revision: Option<u64>,
    ) -> Result<(), ApiError> {
        let holds = match self {
            Self::None => true,
            Self::Exists => revision.is_some(),
            Self::Revision(wanted) => revision.is_some_and(|has| wanted.contains(&has)),
            Self::Absent => revision.is_none(),
            Self::Each(expected) => expected
                .iter()
                .filter(|(resource, _)| resource.kind == kind && resource.id == *id)
                .all(|(_, expected)| revision.unwrap_or(0) == *expected),
        };
        if holds {
            return Ok(());
        }
        Err(ApiError::Precondition { resource: ResourceRef { kind, id: id.clone() }, revision })
    }
}

/// What stands behind the REST API. Lists are in order of id.
pub trait Daemon: Send + Sync + 'static {
    /// Creates or changes a network.
    fn put_network(
        &self,
        id: Id,
        spec: NetworkSpec,
        how: ChangeHow,
    ) -> impl Future<Output = Result<Put<Network>, ApiError>> + Send;

    /// A network.
    fn network(&self, id: &Id) -> impl Future<Output = Result<Network, ApiError>> + Send;

    /// All networks.
    fn networks(&self) -> impl Future<Output = Result<Vec<Network>, ApiError>> + Send;

    /// Removes a network; [`ApiError::Conflict`] while ports are attached to it. Like all deletions
    /// answered with the daemon's revision that came of it.
    fn delete_network(
        &self,
        id: &Id,
        how: ChangeHow,
    ) -> impl Future<Output = Result<u64, ApiError>> + Send;

    /// Creates or changes a port.
    fn put_port(
        &self,
        id: Id,
        spec: PortSpec,
        how: ChangeHow,
    ) -> impl Future<Output = Result<Put<Port>, ApiError>> + Send;

    /// A port.
    fn port(&self, id: &Id) -> impl Future<Output = Result<Port, ApiError>> + Send;

    /// All ports.
    fn ports(&self) -> impl Future<Output = Result<Vec<Port>, ApiError>> + Send;

    /// Removes a port, and with it all that its VF may do.
    fn delete_port(
        &self,
        id: &Id,
        how: ChangeHow,
    ) -> impl Future<Output = Result<u64, ApiError>> + Send;

    /// Creates or changes a guest.
    fn put_guest(
        &self,
        id: Id,
        spec: GuestSpec,
        how: ChangeHow,
    ) -> impl Future<Output = Result<Put<Guest>, ApiError>> + Send;

    /// A guest, whether it was PUT or found in the socket folder.
    fn guest(&self, id: &Id) -> impl Future<Output = Result<Guest, ApiError>> + Send;

    /// All guests, those that were PUT and those found in the socket folder.
    fn guests(&self) -> impl Future<Output = Result<Vec<Guest>, ApiError>> + Send;

    /// Forgets what was PUT for a guest. One whose socket is in the folder stays, as found.
    fn delete_guest(
        &self,
        id: &Id,
        how: ChangeHow,
    ) -> impl Future<Output = Result<u64, ApiError>> + Send;

    /// All adapters.
    fn adapters(&self) -> impl Future<Output = Result<Vec<Adapter>, ApiError>> + Send;

    /// An adapter.
    fn adapter(&self, id: &Id) -> impl Future<Output = Result<Adapter, ApiError>> + Send;

    /// Changes an adapter's mode and number of VFs, or only says what that would mean.
    /// [`ApiError::Conflict`] where it may not be, or VFs are in use and `how` does not force it.
    fn put_eswitch(
        &self,
        id: &Id,
        spec: EswitchSpec,
        how: EswitchHow,
    ) -> impl Future<Output = Result<EswitchChange, ApiError>> + Send;

    /// The flows that match `filter`, in order of adapter, netdev and rule.
    fn flows(&self, filter: FlowFilter)
    -> impl Future<Output = Result<Vec<Flow>, ApiError>> + Send;

    /// The way of a frame through the rules that the kernel holds.
    /// [`ApiError::Conflict`] where there are none to walk.
    fn trace(&self, request: TraceRequest) -> impl Future<Output = Result<Trace, ApiError>> + Send;

    /// How far a port has come.
    fn explain(&self, port: &Id) -> impl Future<Output = Result<Explanation, ApiError>> + Send;

    /// Makes all changes in one transaction, or on an error none.
    fn apply(
        &self,
        changes: Vec<Wanted>,
        how: ChangeHow,
    ) -> impl Future<Output = Result<Applied, ApiError>> + Send;

    /// What changes would come to. Makes none.
    fn dry_run(
        &self,
        changes: Vec<Wanted>,
        only_if: Precondition,
    ) -> impl Future<Output = Result<DryRun, ApiError>> + Send;

    /// Everything that clients have PUT, as it is stored.
    fn snapshot(&self) -> impl Future<Output = Result<Snapshot, ApiError>> + Send;

    /// Puts what a snapshot says in the place of everything that clients have PUT: all of it, or
    /// on an error nothing.
    fn restore(
        &self,
        snapshot: Snapshot,
    ) -> impl Future<Output = Result<Put<Restored>, ApiError>> + Send;

    /// Takes away every flow of the daemon, which then installs none until it is resumed.
    fn tear_down(&self) -> impl Future<Output = Result<TornDown, ApiError>> + Send;

    /// Has the daemon install flows again.
    fn resume(&self) -> impl Future<Output = Result<(), ApiError>> + Send;

    /// What happens, as the daemon tells it.
    fn feed(&self) -> Arc<Feed>;

    /// Whether the daemon has converged once and does its work.
    fn ready(&self) -> impl Future<Output = Result<(), NotReady>> + Send;

    /// All metrics in one of Prometheus' formats. What the kernel has not told within `patience` is
    /// as it was told before.
    fn metrics(
        &self,
        format: MetricsFormat,
        patience: Duration,
    ) -> impl Future<Output = Result<Vec<u8>, ApiError>> + Send;
}
