//! A daemon in memory.
//!
//! In: what the server asks. Out: what a daemon without a host would answer, and on demand every
//! kind of trouble.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use eswitchd_api::{
    batch::{Applied, ChangeOutcome, Changed, DryRun, Wanted},
    error::{ApiError, NotReady, ResourceKind, ResourceRef},
    events::Feed,
    explain::{Explanation, Link, LinkName, LinkState},
    resources::*,
    server::{
        ChangeHow, Daemon, EswitchHow, FlowFilter, MetricsFormat, Precondition, Put, PutOutcome,
    },
    snapshot::{Restored, Saved, Snapshot},
    trace::{Trace, TraceDelivery, TraceFrom, TraceRequest, TraceRule, TraceStep},
    types::Id,
};

/// Resources of one kind by id.
type Table<Spec, Status> = BTreeMap<Id, Resource<Spec, Status>>;

/// What happens instead of an answer.
#[derive(Clone)]
pub(crate) enum Trouble {
    /// This error.
    Error(fn() -> ApiError),
    /// A panic.
    Panic,
    /// Nothing for so long.
    Delay(Duration),
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) networks: Table<NetworkSpec, NetworkStatus>,
    pub(crate) ports: Table<PortSpec, PortStatus>,
    pub(crate) guests: Table<GuestSpec, GuestStatus>,
    pub(crate) adapters: Vec<Adapter>,
    pub(crate) flows: Vec<Flow>,
    pub(crate) not_ready: Vec<String>,
    pub(crate) metrics: String,
    /// How long whoever asked for metrics let the daemon wait.
    pub(crate) metrics_waited: Option<Duration>,
    pub(crate) trouble: Option<Trouble>,
    pub(crate) not_torn_down: Vec<String>,
    /// What is missing, for so many requests that wait.
    pub(crate) missing: Option<(usize, &'static str)>,
    revision: u64,
}

#[derive(Default)]
pub(crate) struct Double(Mutex<State>, Arc<Feed>);

impl Double {
    pub(crate) fn with(change: impl FnOnce(&mut State)) -> Arc<Self> {
        let double = Self::default();
        double.change(change);
        Arc::new(double)
    }

    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.0.lock().unwrap())
    }

    async fn trouble(&self) -> Result<(), ApiError> {
        match self.change(|state| state.trouble.clone()) {
            None => Ok(()),
            Some(Trouble::Error(error)) => Err(error()),
            Some(Trouble::Panic) => panic!("the double was told to panic"),
            Some(Trouble::Delay(time)) => {
                tokio::time::sleep(time).await;
                Ok(())
            }
        }
    }

    async fn put<Spec: Clone + PartialEq, Status: Clone + Default>(
        &self,
        table: impl Fn(&mut State) -> &mut Table<Spec, Status>,
        kind: ResourceKind,
        id: Id,
        spec: Spec,
        how: ChangeHow,
    ) -> Result<Put<Resource<Spec, Status>>, ApiError> {
        self.trouble().await?;
        let outcome = self.change(|state| {
            let found = table(state).get(&id);
            if found.is_none_or(|found| found.spec != spec) {
                how.only_if.check(kind, &id, found.map(|found| found.revision))?;
            }
            let outcome = match table(state).get(&id) {
                None => PutOutcome::Created,
                Some(found) if found.spec == spec => PutOutcome::Unchanged,
                Some(_) => PutOutcome::Updated,
            };
            if outcome != PutOutcome::Unchanged {
                state.revision += 1;
                let revision = state.revision;
                let resource =
                    Resource { id: id.clone(), revision, spec, status: Status::default() };
                table(state).insert(id.clone(), resource);
            }
            Ok::<_, ApiError>(outcome)
        })?;
        self.waited(&how, kind, &id)?;
        self.change(|state| Ok(Put { outcome, resource: table(state)[&id].clone() }))
    }

    /// Answers a request that waits.
    fn waited(&self, how: &ChangeHow, kind: ResourceKind, id: &Id) -> Result<(), ApiError> {
        let Some(waited) = how.wait else { return Ok(()) };
        self.change(|state| match &mut state.missing {
            None | Some((0, _)) => Ok(()),
            Some((left, what)) => {
                *left -= 1;
                let resource = ResourceRef { kind, id: id.clone() }.to_string();
                let missing = vec![(*what).to_owned()];
                Err(ApiError::NotProgrammed { what: resource, waited, missing })
            }
        })
    }

    async fn list<Spec: Clone, Status: Clone>(
        &self,
        table: impl Fn(&mut State) -> &mut Table<Spec, Status>,
    ) -> Result<Vec<Resource<Spec, Status>>, ApiError> {
        self.trouble().await?;
        Ok(self.change(|state| table(state).values().cloned().collect()))
    }

    async fn get<Spec: Clone, Status: Clone>(
        &self,
        kind: ResourceKind,
        table: impl Fn(&mut State) -> &mut Table<Spec, Status>,
        id: &Id,
    ) -> Result<Resource<Spec, Status>, ApiError> {
        self.trouble().await?;
        self.change(|state| table(state).get(id).cloned())
            .ok_or_else(|| ApiError::NotFound { kind, id: id.clone() })
    }

    async fn delete<Spec: Clone, Status: Clone>(
        &self,
        kind: ResourceKind,
        table: impl Fn(&mut State) -> &mut Table<Spec, Status>,
        id: &Id,
        how: ChangeHow,
    ) -> Result<u64, ApiError> {
        self.trouble().await?;
        let revision = self.change(|state| {
            how.only_if.check(kind, id, table(state).get(id).map(|found| found.revision))?;
            let gone = table(state).remove(id);
            gone.ok_or_else(|| ApiError::NotFound { kind, id: id.clone() })?;
            state.revision += 1;
            Ok::<_, ApiError>(state.revision)
        })?;
        self.waited(&how, kind, id)?;
        Ok(revision)
    }
}

fn saved<Spec: Clone, Status>(table: &Table<Spec, Status>) -> Vec<Saved<Spec>> {
    let saved = |(resource, number): (&Resource<Spec, Status>, u32)| Saved {
        id: resource.id.clone(),
        created: resource.revision,
        number,
        spec: resource.spec.clone(),
    };
    table.values().zip(1..).map(saved).collect()
}

fn restored<Spec, Status: Default>(saved: Vec<Saved<Spec>>) -> Table<Spec, Status> {
    let restored = |Saved { id, created, spec, .. }: Saved<Spec>| {
        let status = Status::default();
        (id.clone(), Resource { id, revision: created, spec, status })
    };
    saved.into_iter().map(restored).collect()
}

fn networks(state: &mut State) -> &mut Table<NetworkSpec, NetworkStatus> {
    &mut state.networks
}

fn ports(state: &mut State) -> &mut Table<PortSpec, PortStatus> {
    &mut state.ports
}

fn guests(state: &mut State) -> &mut Table<GuestSpec, GuestStatus> {
    &mut state.guests
}

impl Daemon for Double {
    async fn put_network(
        &self,
        id: Id,
        spec: NetworkSpec,
        how: ChangeHow,
    ) -> Result<Put<Network>, ApiError> {
        self.put(networks, ResourceKind::Network, id, spec, how).await
    }

    async fn network(&self, id: &Id) -> Result<Network, ApiError> {
        self.get(ResourceKind::Network, networks, id).await
    }

    async fn networks(&self) -> Result<Vec<Network>, ApiError> {
        self.list(networks).await
    }

    async fn delete_network(&self, id: &Id, how: ChangeHow) -> Result<u64, ApiError> {
        let blockers: Vec<_> = self.change(|state| {
            let attached = |port: &&Port| port.spec.attachments.iter().any(|at| at.network == *id);
            let reference =
                |port: &Port| ResourceRef { kind: ResourceKind::Port, id: port.id.clone() };
            state.ports.values().filter(attached).map(reference).collect()
        });
        if !blockers.is_empty() {
            let detail = format!("network `{id}` has {} ports", blockers.len());
            let remedy = "detach or delete these ports first".into();
            return Err(ApiError::Conflict { detail, blockers, remedy });
        }
        self.delete(ResourceKind::Network, networks, id, how).await
    }

    async fn put_port(
        &self,
        id: Id,
        spec: PortSpec,
        how: ChangeHow,
    ) -> Result<Put<Port>, ApiError> {
        self.put(ports, ResourceKind::Port, id, spec, how).await
    }

    async fn port(&self, id: &Id) -> Result<Port, ApiError> {
        self.get(ResourceKind::Port, ports, id).await
    }

    async fn ports(&self) -> Result<Vec<Port>, ApiError> {
        self.list(ports).await
    }

    async fn delete_port(&self, id: &Id, how: ChangeHow) -> Result<u64, ApiError> {
        self.delete(ResourceKind::Port, ports, id, how).await
    }

    async fn put_guest(
        &self,
        id: Id,
        spec: GuestSpec,
        how: ChangeHow,
    ) -> Result<Put<Guest>, ApiError> {
        self.put(guests, ResourceKind::Guest, id, spec, how).await
    }

    async fn guest(&self, id: &Id) -> Result<Guest, ApiError> {
        self.get(ResourceKind::Guest, guests, id).await
    }

    async fn guests(&self) -> Result<Vec<Guest>, ApiError> {
        self.list(guests).await
    }

    async fn delete_guest(&self, id: &Id, how: ChangeHow) -> Result<u64, ApiError> {
        self.delete(ResourceKind::Guest, guests, id, how).await
    }

    async fn adapters(&self) -> Result<Vec<Adapter>, ApiError> {
        self.trouble().await?;
        Ok(self.change(|state| state.adapters.clone()))
    }

    async fn adapter(&self, id: &Id) -> Result<Adapter, ApiError> {
        self.trouble().await?;
        self.change(|state| state.adapters.iter().find(|adapter| adapter.id == *id).cloned())
            .ok_or_else(|| ApiError::NotFound { kind: ResourceKind::Adapter, id: id.clone() })
    }

    async fn put_eswitch(
        &self,
        id: &Id,
        spec: EswitchSpec,
        how: EswitchHow,
    ) -> Result<EswitchChange, ApiError> {
        let adapter = self.adapter(id).await?;
        let num_vfs = adapter.vfs.len() as u16;
        let now = EswitchShape { mode: adapter.mode.unwrap_or(EswitchMode::Legacy), num_vfs };
        let then = EswitchShape {
            mode: spec.mode.unwrap_or(now.mode),
            num_vfs: spec.num_vfs.unwrap_or(now.num_vfs),
        };
        let in_use: Vec<String> =
            adapter.vfs.iter().filter_map(|vf| Some(vf.port.as_ref()?.to_string())).collect();
        if !in_use.is_empty() && !how.force && !how.dry_run {
            let (detail, remedy) = ("VFs are in use".into(), "force it".into());
            return Err(ApiError::Conflict { detail, blockers: Vec::new(), remedy });
        }
        Ok(EswitchChange {
            now,
            then,
            steps: Vec::new(),
            ports: Vec::new(),
            in_use,
            refused: None,
            started: !how.dry_run && now != then,
        })
    }

    async fn flows(&self, filter: FlowFilter) -> Result<Vec<Flow>, ApiError> {
        self.trouble().await?;
        let fits = |flow: &&Flow| {
            filter.adapter.as_ref().is_none_or(|id| flow.adapter == *id)
                && filter.port.as_ref().is_none_or(|id| flow.port.as_ref() == Some(id))
                && filter.network.as_ref().is_none_or(|id| flow.network.as_ref() == Some(id))
        };
        Ok(self.change(|state| state.flows.iter().filter(fits).cloned().collect()))
    }

    async fn trace(&self, request: TraceRequest) -> Result<Trace, ApiError> {
        let id = match &request.from {
            TraceFrom::Port(id) => self.port(id).await?.id,
            TraceFrom::Uplink(id) => self.adapter(id).await?.id,
        };
        let frame = format!("{:?} > {}, {:?}", request.src_mac, request.dst_mac, request.tags);
        let rule = TraceRule {
            chain: 0,
            prio: 60,
            tc: "ingress protocol all pref 60 chain 0 flower action goto chain 64".into(),
            state: FlowState::InHw,
            purpose: Some("admission of 02:aa:bb:cc:00:01".into()),
            port: Some(id.clone()),
            network: Some("blue".parse().unwrap()),
            tag: Some(20),
        };
        let matched = TraceStep {
            rule: Some(rule),
            actions: vec!["goto chain 64".into()],
            ..TraceStep::default()
        };
        let note = Some("no rule of chain 64 takes it".to_owned());
        let delivery = TraceDelivery {
            netdev: "tap1".into(),
            port: Some("web-2".parse().unwrap()),
            uplink: false,
            tags: request.tags.clone(),
            frame: frame.clone(),
        };
        Ok(Trace {
            adapter: "soft-lab".parse().unwrap(),
            netdev: "tap0".into(),
            frame,
            steps: vec![matched, TraceStep { note, ..TraceStep::default() }],
            deliveries: vec![delivery],
            to_host: None,
            dropped: false,
            verdict: "to port web-2 (tap1, untagged)".into(),
            caveats: vec!["2 filters of others are there and not walked".into()],
        })
    }

    async fn explain(&self, port: &Id) -> Result<Explanation, ApiError> {
        let port = self.port(port).await?;
        let bound = port.status.adapter.is_some();
        let link = |link, state, message: &str| Link {
            link,
            state,
            message: message.into(),
            remedy: None,
        };
        let seen = match bound {
            true => link(LinkName::Seen, LinkState::Holds, "on representor tap0"),
            false => link(LinkName::Seen, LinkState::Broken, "guest `vm1` is not there\u{7}"),
        };
        let asked = link(LinkName::Asked, LinkState::Holds, "revision 3: attached to blue");
        let remedy = Some("do something".to_owned());
        let hit = Link { remedy, ..link(LinkName::Hit, LinkState::Waiting, "no frame yet") };
        Ok(Explanation::of(port.id, vec![asked, seen, hit]))
    }

    async fn apply(
        &self,
        changes: Vec<Wanted>,
        ChangeHow { only_if, wait }: ChangeHow,
    ) -> Result<Applied, ApiError> {
        self.trouble().await?;
        let mut changed = Vec::new();
        for change in changes {
            let resource = change.resource().to_string();
            let how = ChangeHow { only_if: only_if.clone(), wait };
            let done = match change {
                Wanted::Network(id, Some(spec)) => self.put_network(id, spec, how).await?.outcome,
                Wanted::Port(id, Some(spec)) => self.put_port(id, spec, how).await?.outcome,
                Wanted::Guest(id, Some(spec)) => self.put_guest(id, spec, how).await?.outcome,
                gone => {
                    let deleted = match gone {
                        Wanted::Network(id, _) => self.delete_network(&id, how).await,
                        Wanted::Port(id, _) => self.delete_port(&id, how).await,
                        Wanted::Guest(id, _) => self.delete_guest(&id, how).await,
                    };
                    let outcome = match deleted {
                        Ok(_) => ChangeOutcome::Deleted,
                        Err(ApiError::NotFound { .. }) => ChangeOutcome::Absent,
                        Err(error) => return Err(error),
                    };
                    changed.push(Changed { resource, outcome });
                    continue;
                }
            };
            let outcome = match done {
                PutOutcome::Created => ChangeOutcome::Created,
                PutOutcome::Updated => ChangeOutcome::Updated,
                PutOutcome::Unchanged => ChangeOutcome::Unchanged,
            };
            changed.push(Changed { resource, outcome });
        }
        Ok(Applied { revision: self.change(|state| state.revision), changes: changed })
    }

    async fn dry_run(&self, changes: Vec<Wanted>, _: Precondition) -> Result<DryRun, ApiError> {
        self.trouble().await?;
        let changed = |change: Wanted| Changed {
            resource: change.resource().to_string(),
            outcome: ChangeOutcome::Updated,
        };
        Ok(DryRun { changes: changes.into_iter().map(changed).collect(), ..DryRun::default() })
    }

    async fn snapshot(&self) -> Result<Snapshot, ApiError> {
        self.trouble().await?;
        Ok(self.change(|state| Snapshot {
            format: 1,
            revision: state.revision,
            networks: saved(&state.networks),
            ports: saved(&state.ports),
            guests: saved(&state.guests),
            eswitches: Vec::new(),
            addresses: Vec::new(),
        }))
    }

    async fn restore(&self, snapshot: Snapshot) -> Result<Put<Restored>, ApiError> {
        self.trouble().await?;
        let current = self.snapshot().await?;
        self.change(|state| {
            let outcome = match current == snapshot {
                true => PutOutcome::Unchanged,
                false => PutOutcome::Updated,
            };
            state.networks = restored(snapshot.networks);
            state.ports = restored(snapshot.ports);
            state.guests = restored(snapshot.guests);
            let resource = Restored {
                revision: state.revision,
                networks: state.networks.len(),
                ports: state.ports.len(),
                guests: state.guests.len(),
            };
            Ok(Put { outcome, resource })
        })
    }

    async fn tear_down(&self) -> Result<TornDown, ApiError> {
        self.trouble().await?;
        Ok(self.change(|state| TornDown {
            removed: std::mem::take(&mut state.flows).len(),
            netdevs: 1,
            foreign: 2,
            offload: 1,
            left: state.not_torn_down.clone(),
        }))
    }

    async fn resume(&self) -> Result<(), ApiError> {
        self.trouble().await
    }

    fn feed(&self) -> Arc<Feed> {
        Arc::clone(&self.1)
    }

    async fn ready(&self) -> Result<(), NotReady> {
        let reasons = self.change(|state| state.not_ready.clone());
        if reasons.is_empty() { Ok(()) } else { Err(NotReady { reasons }) }
    }

    async fn metrics(&self, format: MetricsFormat, wait: Duration) -> Result<Vec<u8>, ApiError> {
        self.trouble().await?;
        self.change(|state| state.metrics_waited = Some(wait));
        match format {
            MetricsFormat::Text => Ok(self.change(|state| state.metrics.clone().into_bytes())),
            MetricsFormat::Protobuf => Ok(b"protobuf".to_vec()),
        }
    }
}
