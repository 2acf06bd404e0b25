//! The API's side of the owner: every request becomes one call to it, a teardown several.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use api::{
    batch::{Applied, Changed, DryRun, Wanted},
    error::{ApiError, NotReady, ResourceKind, ResourceRef},
    events::Feed,
    explain::Explanation,
    resources::{
        Adapter, EswitchChange, EswitchSpec, Flow, Guest, GuestSpec, Network, NetworkSpec, Port,
        PortSpec, TornDown,
    },
    server::{
        ChangeHow, Daemon, EswitchHow, FlowFilter, MetricsFormat, Precondition, Put, PutOutcome,
    },
    snapshot::{Restored, Snapshot},
    trace::{Trace, TraceRequest},
    types::Id,
};
use tc_flows::{Dump, Ifindex};
use tokio::sync::{Mutex, mpsc, oneshot};

use super::{Call, Owner, Write, Written, trace, waiting::Waiter};
use crate::{
    intent::{Change, Effect},
    metrics::{Metrics, certificate},
    snapshot,
    teardown::{self, Teardown},
};

/// How long a teardown waits for what is under way.
const REST: Duration = Duration::from_secs(20);

/// How often it looks.
const LOOK: Duration = Duration::from_millis(20);

/// The owner, as the API server calls it.
#[derive(Debug, Clone)]
pub(crate) struct DaemonHandle {
    calls: mpsc::Sender<Call>,
    metrics: Arc<Metrics>,
    feed: Arc<Feed>,
    /// The certificate of TLS listeners.
    certificate: Option<PathBuf>,
    /// Numbers for those who wait.
    tickets: Arc<AtomicU64>,
    /// Held while flows are taken away or brought back.
    tearing_down: Arc<Mutex<()>>,
    /// Held while what changes would come to is planned.
    dry_running: Arc<Mutex<()>>,
    /// Held while the kernel is asked for what it holds at a hook.
    reading: Arc<Mutex<()>>,
}

impl DaemonHandle {
    /// A handle that calls over `calls`, the other end of which [`Owner::run`] reads.
    pub(crate) fn new(
        calls: mpsc::Sender<Call>,
        metrics: Arc<Metrics>,
        feed: Arc<Feed>,
        certificate: Option<PathBuf>,
    ) -> Self {
        DaemonHandle {
            calls,
            metrics,
            feed,
            certificate,
            tickets: Arc::default(),
            tearing_down: Arc::default(),
            dry_running: Arc::default(),
            reading: Arc::default(),
        }
    }

    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&mut Owner) -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let (answer, answered) = oneshot::channel();
        let call = Call::Read(Box::new(move |owner| {
            answer.send(read(owner)).ok();
        }));
        self.calls.send(call).await.map_err(|_| stopping())?;
        answered.await.map_err(|_| stopping())
    }

    async fn find<T: Send + 'static>(
        &self,
        kind: ResourceKind,
        id: &Id,
        find: impl FnOnce(&mut Owner, &Id) -> Option<T> + Send + 'static,
    ) -> Result<T, ApiError> {
        let wanted = id.clone();
        self.read(move |owner| find(owner, &wanted))
            .await?
            .ok_or_else(|| ApiError::NotFound { kind, id: id.clone() })
    }

    async fn write(&self, change: Change, only_if: Precondition) -> Result<Effect, ApiError> {
        let written = self.write_for(vec![change], only_if, None).await?;
        written.effects.first().copied().ok_or_else(stopping)
    }

    async fn write_for(
        &self,
        changes: Vec<Change>,
        only_if: Precondition,
        waiter: Option<Waiter>,
    ) -> Result<Written, ApiError> {
        let (answer, answered) = oneshot::channel();
        self.calls
            .send(Call::Write(Box::new(Write { changes, only_if, waiter, answer })))
            .await
            .map_err(|_| stopping())?;
        answered.await.map_err(|_| stopping())?
    }

    /// Makes changes, and waits for what they need where the client does. `what` names them.
    async fn change(
        &self,
        changes: Vec<Change>,
        how: ChangeHow,
        what: String,
    ) -> Result<Written, ApiError> {
        let Some(limit) = how.wait else { return self.write_for(changes, how.only_if, None).await };
        let ticket = self.tickets.fetch_add(1, Ordering::Relaxed);
        let (programmed, is_programmed) = oneshot::channel();
        let waiter = Waiter { ticket, programmed };
        let written = self.write_for(changes, how.only_if, Some(waiter)).await?;
        if written.effects.iter().all(|effect| *effect == Effect::Absent) {
            return Ok(written);
        }
        match tokio::time::timeout(limit, is_programmed).await {
            Ok(Ok(())) => Ok(written),
            Ok(Err(_)) => Err(stopping()),
            Err(_) => match self.read(move |owner| owner.give_up(ticket)).await? {
                missing if missing.is_empty() => Ok(written),
                missing => Err(ApiError::NotProgrammed { what, waited: limit, missing }),
            },
        }
    }

    /// The same for one resource; what became of it, and the daemon's revision then.
    async fn change_one(
        &self,
        change: Change,
        how: ChangeHow,
        kind: ResourceKind,
        id: &Id,
    ) -> Result<(Effect, u64), ApiError> {
        let what = ResourceRef { kind, id: id.clone() }.to_string();
        let Written { effects, revision } = self.change(vec![change], how, what).await?;
        effects.first().map(|effect| (*effect, revision)).ok_or_else(stopping)
    }

    async fn put<T: Send + 'static>(
        &self,
        change: Change,
        how: ChangeHow,
        kind: ResourceKind,
        id: Id,
        find: impl FnOnce(&mut Owner, &Id) -> Option<T> + Send + 'static,
    ) -> Result<Put<T>, ApiError> {
        let (effect, _) = self.change_one(change, how, kind, &id).await?;
        let outcome = match effect {
            Effect::Created => PutOutcome::Created,
            Effect::Updated => PutOutcome::Updated,
            Effect::Unchanged | Effect::Deleted | Effect::Absent => PutOutcome::Unchanged,
        };
        Ok(Put { outcome, resource: self.find(kind, &id, find).await? })
    }

    async fn delete(
        &self,
        change: Change,
        how: ChangeHow,
        kind: ResourceKind,
        id: &Id,
    ) -> Result<u64, ApiError> {
        match self.change_one(change, how, kind, id).await? {
            (Effect::Absent, _) => Err(ApiError::NotFound { kind, id: id.clone() }),
            (_, revision) => Ok(revision),
        }
    }
}

impl DaemonHandle {
    /// What the kernel holds at a hook; one is read at a time.
    async fn read_hook(&self, ifindex: Ifindex) -> Result<Dump, ApiError> {
        let _alone = self.reading.lock().await;
        tokio::task::spawn_blocking(move || trace::read_hook(ifindex))
            .await
            .map_err(|error| ApiError::Internal(error.into()))?
    }

    async fn take_flows_away(&self) -> Result<TornDown, ApiError> {
        let _alone = self.tearing_down.lock().await;
        self.read(|owner| owner.set_torn_down(true)).await?;
        match self.when_at_rest().await {
            Ok(Teardown { removed, netdevs, foreign, mut left, .. }) => {
                let eswitch = self.read(|owner| owner.outlets.eswitch.clone()).await?;
                // After the flows: some drivers keep it on while they hold any.
                let (offload, still_on) = eswitch.put_tc_offload_back().await;
                left.extend(still_on);
                self.read(Owner::forget_programmed).await?;
                Ok(TornDown { removed, netdevs, foreign, offload, left })
            }
            Err(error) => {
                self.read(|owner| owner.set_torn_down(false)).await?;
                Err(error)
            }
        }
    }

    async fn when_at_rest(&self) -> Result<Teardown, ApiError> {
        let began = Instant::now();
        while !self.read(|owner| owner.at_rest()).await? {
            if began.elapsed() > REST {
                return Err(ApiError::Timeout { limit: REST });
            }
            tokio::time::sleep(LOOK).await;
        }
        tokio::task::spawn_blocking(teardown::flows)
            .await
            .map_err(|error| ApiError::Internal(error.into()))?
            .map_err(|error| ApiError::Internal(error.into()))
    }
}

/// The owner is gone: the daemon is about to end.
fn stopping() -> ApiError {
    ApiError::NotReady(NotReady { reasons: vec!["the daemon is stopping".into()] })
}

impl Daemon for DaemonHandle {
    async fn put_network(
        &self,
        id: Id,
        spec: NetworkSpec,
        how: ChangeHow,
    ) -> Result<Put<Network>, ApiError> {
        let change = Change::Network(id.clone(), Some(spec));
        self.put(change, how, ResourceKind::Network, id, Owner::network).await
    }

    async fn network(&self, id: &Id) -> Result<Network, ApiError> {
        self.find(ResourceKind::Network, id, Owner::network).await
    }

    async fn networks(&self) -> Result<Vec<Network>, ApiError> {
        self.read(|owner| {
            let ids: Vec<Id> = owner.intent.networks.keys().cloned().collect();
            ids.iter().filter_map(|id| owner.network(id)).collect()
        })
        .await
    }

    async fn delete_network(&self, id: &Id, how: ChangeHow) -> Result<u64, ApiError> {
        self.delete(Change::Network(id.clone(), None), how, ResourceKind::Network, id).await
    }

    async fn put_port(
        &self,
        id: Id,
        spec: PortSpec,
        how: ChangeHow,
    ) -> Result<Put<Port>, ApiError> {
        let change = Change::Port(id.clone(), Some(spec));
        self.put(change, how, ResourceKind::Port, id, Owner::port).await
    }

    async fn port(&self, id: &Id) -> Result<Port, ApiError> {
        self.find(ResourceKind::Port, id, Owner::port_with_counters).await
    }

    async fn ports(&self) -> Result<Vec<Port>, ApiError> {
        self.read(Owner::ports).await
    }

    async fn delete_port(&self, id: &Id, how: ChangeHow) -> Result<u64, ApiError> {
        self.delete(Change::Port(id.clone(), None), how, ResourceKind::Port, id).await
    }

    async fn put_guest(
        &self,
        id: Id,
        spec: GuestSpec,
        how: ChangeHow,
    ) -> Result<Put<Guest>, ApiError> {
        let change = Change::Guest(id.clone(), Some(spec));
        self.put(change, how, ResourceKind::Guest, id, Owner::guest).await
    }

    async fn guest(&self, id: &Id) -> Result<Guest, ApiError> {
        self.find(ResourceKind::Guest, id, Owner::guest).await
    }

    async fn guests(&self) -> Result<Vec<Guest>, ApiError> {
        self.read(Owner::guests).await
    }

    async fn delete_guest(&self, id: &Id, how: ChangeHow) -> Result<u64, ApiError> {
        self.delete(Change::Guest(id.clone(), None), how, ResourceKind::Guest, id).await
    }

    async fn adapters(&self) -> Result<Vec<Adapter>, ApiError> {
        self.read(Owner::adapters).await
    }

    async fn adapter(&self, id: &Id) -> Result<Adapter, ApiError> {
        self.find(ResourceKind::Adapter, id, Owner::adapter).await
    }

    async fn put_eswitch(
        &self,
        id: &Id,
        spec: EswitchSpec,
        how: EswitchHow,
    ) -> Result<EswitchChange, ApiError> {
        let wanted = id.clone();
        let considered = self.read(move |owner| owner.consider(&wanted, spec, how.force)).await??;
        if how.dry_run {
            return Ok(considered.change);
        }
        let (mut change, order) = considered.decide()?;
        if let Some(order) = order {
            change.started = order.target().is_some();
            self.write(Change::Eswitch(id.clone(), Some(order)), Precondition::None).await?;
        }
        Ok(change)
    }

    async fn flows(&self, filter: FlowFilter) -> Result<Vec<Flow>, ApiError> {
        self.read(move |owner| owner.flows(&filter)).await
    }

    async fn trace(&self, request: TraceRequest) -> Result<Trace, ApiError> {
        let entrance = self.read(move |owner| owner.entrance(&request)).await??;
        let dump = self.read_hook(entrance.ifindex()).await?;
        let passed = tokio::task::spawn_blocking(move || entrance.pass(&dump))
            .await
            .map_err(|error| ApiError::Internal(error.into()))?;
        self.read(move |owner| owner.told(passed)).await
    }

    async fn explain(&self, port: &Id) -> Result<Explanation, ApiError> {
        let id = port.clone();
        let explained = self.read(move |owner| owner.explained(&id)).await??;
        let dump = match explained.counted_at {
            Some(ifindex) => Some(self.read_hook(ifindex).await?),
            None => None,
        };
        self.read(move |owner| owner.explanation(explained, dump.as_ref())).await
    }

    async fn apply(&self, changes: Vec<Wanted>, how: ChangeHow) -> Result<Applied, ApiError> {
        let resources: Vec<ResourceRef> = changes.iter().map(Wanted::resource).collect();
        let changes: Vec<Change> = changes.into_iter().map(Change::from).collect();
        let what = format!("a batch of {} changes", changes.len());
        let Written { effects, revision } = self.change(changes, how, what).await?;
        let changed = resources.iter().zip(effects).map(|(resource, effect)| Changed {
            resource: resource.to_string(),
            outcome: effect.into(),
        });
        Ok(Applied { revision, changes: changed.collect() })
    }

    async fn dry_run(
        &self,
        changes: Vec<Wanted>,
        only_if: Precondition,
    ) -> Result<DryRun, ApiError> {
        // Each plans everything: one at a time.
        let _alone = self.dry_running.lock().await;
        let imagined = self.read(move |owner| owner.imagine(changes, &only_if)).await??;
        tokio::task::spawn_blocking(move || imagined.consider())
            .await
            .map_err(|error| ApiError::Internal(error.into()))
    }

    async fn snapshot(&self) -> Result<Snapshot, ApiError> {
        self.read(|owner| snapshot::snapshot(&owner.intent, owner.planner.claims())).await
    }

    async fn restore(&self, snapshot: Snapshot) -> Result<Put<Restored>, ApiError> {
        let change = Change::Everything(Box::new(snapshot::restoration(snapshot)?));
        let outcome = match self.write(change, Precondition::None).await? {
            Effect::Unchanged => PutOutcome::Unchanged,
            _ => PutOutcome::Updated,
        };
        let resource = self.read(|owner| Restored {
            revision: owner.intent.revision,
            networks: owner.intent.networks.size(),
            ports: owner.intent.ports.size(),
            guests: owner.intent.guests.size(),
        });
        Ok(Put { outcome, resource: resource.await? })
    }

    async fn tear_down(&self) -> Result<TornDown, ApiError> {
        let handle = self.clone();
        // It is done to its end, also where the client does not wait for that.
        let done = tokio::spawn(async move { handle.take_flows_away().await }).await;
        done.map_err(|error| ApiError::Internal(error.into()))?
    }

    async fn resume(&self) -> Result<(), ApiError> {
        let _alone = self.tearing_down.lock().await;
        self.read(|owner| owner.set_torn_down(false)).await
    }

    fn feed(&self) -> Arc<Feed> {
        Arc::clone(&self.feed)
    }

    async fn ready(&self) -> Result<(), NotReady> {
        let reasons = self.read(|owner| owner.not_ready()).await;
        match reasons {
            Ok(reasons) if reasons.is_empty() => Ok(()),
            Ok(reasons) => Err(NotReady { reasons }),
            Err(_) => Err(NotReady { reasons: vec!["the daemon is stopping".into()] }),
        }
    }

    async fn metrics(
        &self,
        format: MetricsFormat,
        patience: Duration,
    ) -> Result<Vec<u8>, ApiError> {
        let (counted, fresh) = oneshot::channel();
        self.read(|owner| {
            owner.update_gauges();
            owner.count(counted);
        })
        .await?;
        // What has not come by then is as it was.
        tokio::time::timeout(patience, fresh).await.ok();
        let ends = self.certificate.as_deref().and_then(certificate::end_of);
        let ends = ends.map(|ends| (Vec::new(), ends.as_secs_f64()));
        self.metrics.certificate_ends.replace(ends.into_iter().collect());
        match format {
            MetricsFormat::Text => self.metrics.text().map(String::into_bytes),
            MetricsFormat::Protobuf => self.metrics.protobuf(),
        }
        .map_err(|error| ApiError::Internal(Box::new(error)))
    }
}
