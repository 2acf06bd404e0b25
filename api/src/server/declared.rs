//! What the resources that clients declare have in common.
//!
//! In: a kind of spec. Out: the [`Daemon`]'s methods for it, so that each handler stands once for
//! networks, ports and guests.

use std::{collections::BTreeMap, future::Future};

use serde::{Serialize, de::DeserializeOwned};
use utoipa::ToSchema;

use super::{ChangeHow, Daemon, Put};
use crate::{
    batch::Wanted,
    error::{ApiError, InvalidField, ResourceKind},
    resources::{
        GuestSpec, GuestStatus, NetworkSpec, NetworkStatus, Port, PortFunction, PortSpec,
        PortStatus, Resource,
    },
    types::Id,
};

/// A spec that clients PUT.
pub(crate) trait Declared: Serialize + DeserializeOwned + ToSchema + Send + 'static {
    /// What the daemon says about it.
    type Status: Serialize + DeserializeOwned + ToSchema + Send + 'static;

    /// Its kind.
    const KIND: ResourceKind;

    fn validate(&self) -> Result<(), InvalidField>;

    /// Whether a resource belongs to what is asked for.
    fn fits(resource: &Resource<Self, Self::Status>, filter: &ListFilter) -> bool;

    /// The change that gives a resource this spec, or deletes it.
    fn wanted(id: Id, spec: Option<Self>) -> Wanted;

    fn put<D: Daemon>(
        self,
        daemon: &D,
        id: Id,
        how: ChangeHow,
    ) -> impl Future<Output = Result<Put<Resource<Self, Self::Status>>, ApiError>> + Send;

    fn get<D: Daemon>(
        daemon: &D,
        id: &Id,
    ) -> impl Future<Output = Result<Resource<Self, Self::Status>, ApiError>> + Send;

    fn list<D: Daemon>(
        daemon: &D,
    ) -> impl Future<Output = Result<Vec<Resource<Self, Self::Status>>, ApiError>> + Send;

    fn delete<D: Daemon>(
        daemon: &D,
        id: &Id,
        how: ChangeHow,
    ) -> impl Future<Output = Result<u64, ApiError>> + Send;
}

/// Which resources are asked for: those that match every field that is there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ListFilter {
    /// With each of these labels, and where a value is named, with that value.
    pub(crate) labels: Vec<(String, Option<String>)>,
    /// Ports: attached to this network.
    pub(crate) network: Option<Id>,
    /// Ports: of this guest.
    pub(crate) guest: Option<Id>,
    /// Ports: bound to this adapter.
    pub(crate) adapter: Option<Id>,
}

impl ListFilter {
    fn takes_labels(&self, labels: &BTreeMap<String, String>) -> bool {
        self.labels.iter().all(|(name, wanted)| {
            let value = labels.get(name);
            value.is_some_and(|value| wanted.as_ref().is_none_or(|wanted| wanted == value))
        })
    }

    fn takes_port(&self, port: &Port) -> bool {
        let guest = match &port.spec.function {
            PortFunction::GuestVf { guest, .. } => Some(guest),
            PortFunction::Vf { .. } | PortFunction::Netdev { .. } => None,
        };
        let attached = |network: &Id| port.spec.attachments.iter().any(|at| at.network == *network);
        self.network.as_ref().is_none_or(attached)
            && self.guest.as_ref().is_none_or(|wanted| guest == Some(wanted))
            && self.adapter.as_ref().is_none_or(|id| port.status.adapter.as_ref() == Some(id))
    }
}

macro_rules! declared {
    ($spec:ident, $status:ident, $kind:ident, $fits:expr, $put:ident, $get:ident, $list:ident, $delete:ident) => {
        impl Declared for $spec {
            type Status = $status;

            const KIND: ResourceKind = ResourceKind::$kind;

            fn validate(&self) -> Result<(), InvalidField> {
                $spec::validate(self)
            }

            fn fits(resource: &Resource<$spec, $status>, filter: &ListFilter) -> bool {
                filter.takes_labels(&resource.spec.labels) && $fits(filter, resource)
            }

            fn wanted(id: Id, spec: Option<Self>) -> Wanted {
                Wanted::$kind(id, spec)
            }

            async fn put<D: Daemon>(
                self,
                daemon: &D,
                id: Id,
                how: ChangeHow,
            ) -> Result<Put<Resource<$spec, $status>>, ApiError> {
                daemon.$put(id, self, how).await
            }

            async fn get<D: Daemon>(
                daemon: &D,
                id: &Id,
            ) -> Result<Resource<$spec, $status>, ApiError> {
                daemon.$get(id).await
            }

            async fn list<D: Daemon>(
                daemon: &D,
            ) -> Result<Vec<Resource<$spec, $status>>, ApiError> {
                daemon.$list().await
            }

            async fn delete<D: Daemon>(
                daemon: &D,
                id: &Id,
                how: ChangeHow,
            ) -> Result<u64, ApiError> {
                daemon.$delete(id, how).await
            }
        }
    };
}

declared!(
    NetworkSpec,
    NetworkStatus,
    Network,
    |_, _| true,
    put_network,
    network,
    networks,
    delete_network
);
declared!(PortSpec, PortStatus, Port, ListFilter::takes_port, put_port, port, ports, delete_port);
declared!(GuestSpec, GuestStatus, Guest, |_, _| true, put_guest, guest, guests, delete_guest);
