//! `eswitchctl apply` and `delete -f`: declares, or deletes, what documents say.
//!
//! In: JSON documents, one after another or in arrays, or YAML documents. Out: one batch, so that
//! all of it is done or nothing, and with `--wait` the same again until the kernel has it. All
//! documents are read and checked before anything is sent.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read, Write},
    path::Path,
    time::{Duration, Instant},
};

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::{CommandError, DeclaredKind, Exit, dry_run, is_not_programmed, table::printable};
use crate::{
    batch::{Applied, Batch, Named, Wanted},
    client::{Client, ClientError},
    error::ApiError,
    resources::{Desired, GuestSpec, NetworkSpec, PortSpec},
    server::{declared::Declared, request},
    types::Id,
};

/// After this time people are told what is missing.
const LOOK: Duration = Duration::from_secs(2);

/// What is done with documents.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct How {
    /// What they say is deleted.
    pub(super) delete: bool,
    /// Nothing is changed: what it would come to is said.
    pub(super) dry_run: bool,
    /// How long to wait until the kernel has it.
    pub(super) wait: Option<Duration>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    kind: DeclaredKind,
    id: Id,
    spec: Value,
}

pub(super) async fn apply(
    client: &Client,
    file: &Path,
    how: How,
    input: &mut dyn Read,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> Result<Exit, CommandError> {
    let changes: Vec<Wanted> = declarations(&text(file, input)?)?
        .into_iter()
        .map(|wanted| if how.delete { without_spec(wanted) } else { wanted })
        .collect();
    let names: Vec<String> = changes.iter().map(name).collect();
    let batch = batch(changes);
    if how.dry_run {
        dry_run::write(out, &client.dry_run(&batch).await?)?;
        return Ok(Exit::Done);
    }
    let Applied { changes, .. } = client.apply(&batch).await?;
    let outcomes: BTreeMap<&str, &str> =
        changes.iter().map(|it| (it.resource.as_str(), it.outcome.as_str())).collect();
    for name in &names {
        let outcome = outcomes.get(name.as_str()).copied().unwrap_or("sent");
        writeln!(out, "{name} {outcome}")?;
    }
    if let Some(limit) = how.wait {
        programmed(client, &batch, limit, err).await?;
        writeln!(out, "programmed")?;
    }
    Ok(Exit::Done)
}

/// Waits until a batch that is stored is in the kernel, and says meanwhile what is missing.
async fn programmed(
    client: &Client,
    batch: &Batch,
    limit: Duration,
    err: &mut dyn Write,
) -> Result<(), CommandError> {
    let until = Instant::now() + limit;
    let mut told = Vec::new();
    loop {
        let left = until.saturating_duration_since(Instant::now());
        match client.waiting(LOOK.min(left)).apply(batch).await {
            Ok(_) => return Ok(()),
            Err(ClientError::Problem(problem)) if is_not_programmed(&problem) && left > LOOK => {
                if problem.reasons != told {
                    for reason in &problem.reasons {
                        writeln!(err, "waiting: {}", printable(reason))?;
                    }
                    told = problem.reasons;
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// A change's resource, as the daemon names it.
fn name(wanted: &Wanted) -> String {
    wanted.resource().to_string()
}

fn without_spec(wanted: Wanted) -> Wanted {
    match wanted {
        Wanted::Network(id, _) => Wanted::Network(id, None),
        Wanted::Port(id, _) => Wanted::Port(id, None),
        Wanted::Guest(id, _) => Wanted::Guest(id, None),
    }
}

/// A batch of these changes.
pub(super) fn batch(changes: Vec<Wanted>) -> Batch {
    let mut batch = Batch::default();
    for change in changes {
        match change {
            Wanted::Network(id, Some(spec)) => batch.networks.push(Named { id, spec }),
            Wanted::Port(id, Some(spec)) => batch.ports.push(Named { id, spec }),
            Wanted::Guest(id, Some(spec)) => batch.guests.push(Named { id, spec }),
            Wanted::Network(id, None) => batch.delete.networks.push(id),
            Wanted::Port(id, None) => batch.delete.ports.push(id),
            Wanted::Guest(id, None) => batch.delete.guests.push(id),
        }
    }
    batch
}

fn text(file: &Path, input: &mut dyn Read) -> Result<String, CommandError> {
    let mut text = String::new();
    let read = match file == Path::new("-") {
        true => input.read_to_string(&mut text),
        false => std::fs::File::open(file).and_then(|mut file| file.read_to_string(&mut text)),
    };
    read.map_err(|source| CommandError::File { path: file.to_owned(), source })?;
    Ok(text)
}

/// The documents of a text. JSON ones need nothing between them, which YAML does not know.
fn documents(text: &str) -> Result<Vec<Value>, CommandError> {
    let hint = "write documents {\"kind\": …, \"id\": …, \"spec\": {…}}";
    let values: Vec<Value> = match text.trim_start().starts_with(['{', '[']) {
        true => serde_json::Deserializer::from_str(text)
            .into_iter()
            .collect::<Result<_, _>>()
            .map_err(|error| CommandError::Document(format!("not JSON: {error}; {hint}")))?,
        false => serde_saphyr::from_multiple(text)
            .map_err(|error| CommandError::Document(format!("not YAML: {error}; {hint}")))?,
    };
    let mut documents = Vec::new();
    for value in values {
        match value {
            Value::Array(items) => documents.extend(items),
            // What YAML makes of an empty document.
            Value::Null => {}
            value => documents.push(value),
        }
    }
    match documents.is_empty() {
        true => Err(CommandError::Document("there is no document".to_owned())),
        false => Ok(documents),
    }
}

/// All documents of a text, checked. An error names the document by its place, from 1.
fn declarations(text: &str) -> Result<Vec<Wanted>, CommandError> {
    let mut named = BTreeSet::new();
    let documents = documents(text)?;
    documents
        .iter()
        .zip(1..)
        .map(|(value, place)| {
            let wanted = declaration(value).map_err(|error| {
                let problem = error.problem();
                let field = problem.field.map(|field| format!("{field}: ")).unwrap_or_default();
                let remedy = problem.remedy.unwrap_or_default();
                let detail = problem.detail;
                CommandError::Document(format!("document {place}: {field}{detail}; {remedy}"))
            })?;
            let name = name(&wanted);
            if !named.insert(name.clone()) {
                let again = format!("document {place}: {name} is there twice; name it once");
                return Err(CommandError::Document(again));
            }
            Ok(wanted)
        })
        .collect()
}

fn declaration(value: &Value) -> Result<Wanted, ApiError> {
    let Document { kind, id, spec } = request::json(value.to_string().as_bytes())?;
    Ok(match kind {
        DeclaredKind::Network => Wanted::Network(id, Some(checked::<NetworkSpec>(spec)?)),
        DeclaredKind::Port => Wanted::Port(id, Some(checked::<PortSpec>(spec)?)),
        DeclaredKind::Guest => Wanted::Guest(id, Some(checked::<GuestSpec>(spec)?)),
    })
}

fn checked<Spec: Declared>(spec: Value) -> Result<Spec, ApiError>
where
    Desired<Spec>: DeserializeOwned,
{
    let body = json!({ "spec": spec }).to_string();
    let Desired { spec } = request::json::<Desired<Spec>>(body.as_bytes())?;
    spec.validate()?;
    Ok(spec)
}
