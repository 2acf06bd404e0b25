//! `eswitchctl apply`: declares what documents say.
//!
//! In: JSON documents, one after another or in arrays. Out: a PUT for each, in their order, and
//! with `--wait` the same again until the kernel has it. All are read and checked before the first
//! is sent; one that the daemon refuses does not keep the others back.

use std::{
    io::{self, Read, Write},
    path::Path,
    time::{Duration, Instant},
};

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::{
    CommandError, DeclaredKind, Exit, complain, exit_of, is_not_programmed, table::printable,
};
use crate::{
    client::{Client, ClientError},
    error::ApiError,
    resources::{Desired, GuestSpec, NetworkSpec, PortSpec},
    server::{declared::Declared, request},
    types::Id,
};

/// After this time people are told what is missing.
const LOOK: Duration = Duration::from_secs(2);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    kind: DeclaredKind,
    id: Id,
    spec: Value,
}

/// A document whose spec has passed its checks.
#[derive(Clone)]
enum Declaration {
    Network(Id, NetworkSpec),
    Port(Id, PortSpec),
    Guest(Id, GuestSpec),
}

pub(super) async fn apply(
    client: &Client,
    file: &Path,
    wait: Option<Duration>,
    input: &mut dyn Read,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> Result<Exit, CommandError> {
    let mut exit = Exit::Done;
    let mut stored = Vec::new();
    for declaration in declarations(&text(file, input)?)? {
        let name = declaration.name();
        match put(client, declaration.clone()).await {
            Ok(outcome) => {
                writeln!(out, "{name} {outcome}")?;
                stored.push(declaration);
            }
            Err(error) => {
                complain(err, &name, &error)?;
                exit = exit.max(exit_of(&error));
                if exit == Exit::Unreachable {
                    break;
                }
            }
        }
    }
    let Some(limit) = wait.filter(|_| exit != Exit::Unreachable) else { return Ok(exit) };
    let until = Instant::now() + limit;
    for declaration in stored {
        let name = declaration.name();
        match programmed(client, declaration, until, err).await? {
            Ok(()) => writeln!(out, "{name} programmed")?,
            Err(error) => {
                complain(err, &name, &error)?;
                exit = exit.max(exit_of(&error));
            }
        }
    }
    Ok(exit)
}

/// Waits until a declaration that is stored is in the kernel, and says meanwhile what is missing.
async fn programmed(
    client: &Client,
    declaration: Declaration,
    until: Instant,
    err: &mut dyn Write,
) -> io::Result<Result<(), ClientError>> {
    let mut told = Vec::new();
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let waiting = client.waiting(LOOK.min(left));
        match put(&waiting, declaration.clone()).await {
            Ok(_) => return Ok(Ok(())),
            Err(ClientError::Problem(problem)) if is_not_programmed(&problem) && left > LOOK => {
                if problem.reasons != told {
                    for reason in &problem.reasons {
                        writeln!(err, "waiting: {}", printable(reason))?;
                    }
                    told = problem.reasons;
                }
            }
            Err(error) => return Ok(Err(error)),
        }
    }
}

impl Declaration {
    fn name(&self) -> String {
        match self {
            Self::Network(id, _) => format!("network/{id}"),
            Self::Port(id, _) => format!("port/{id}"),
            Self::Guest(id, _) => format!("guest/{id}"),
        }
    }
}

async fn put(client: &Client, declaration: Declaration) -> Result<&'static str, ClientError> {
    let outcome = match declaration {
        Declaration::Network(id, spec) => client.put_network(&id, spec).await?.outcome,
        Declaration::Port(id, spec) => client.put_port(&id, spec).await?.outcome,
        Declaration::Guest(id, spec) => client.put_guest(&id, spec).await?.outcome,
    };
    Ok(outcome.as_str())
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

/// All documents of a text, checked. An error names the document by its place, from 1.
fn declarations(text: &str) -> Result<Vec<Declaration>, CommandError> {
    let mut documents = Vec::new();
    for value in serde_json::Deserializer::from_str(text).into_iter::<Value>() {
        match value {
            Ok(Value::Array(items)) => documents.extend(items),
            Ok(value) => documents.push(value),
            Err(error) => {
                let hint = "write JSON documents {\"kind\": …, \"id\": …, \"spec\": {…}}";
                return Err(CommandError::Document(format!("not JSON: {error}; {hint}")));
            }
        }
    }
    if documents.is_empty() {
        return Err(CommandError::Document("there is no document".to_owned()));
    }
    documents
        .iter()
        .zip(1..)
        .map(|(value, place)| {
            declaration(value).map_err(|error| {
                let problem = error.problem();
                let field = problem.field.map(|field| format!("{field}: ")).unwrap_or_default();
                let remedy = problem.remedy.unwrap_or_default();
                let detail = problem.detail;
                CommandError::Document(format!("document {place}: {field}{detail}; {remedy}"))
            })
        })
        .collect()
}

fn declaration(value: &Value) -> Result<Declaration, ApiError> {
    let Document { kind, id, spec } = request::json(value.to_string().as_bytes())?;
    Ok(match kind {
        DeclaredKind::Network => Declaration::Network(id, checked(spec)?),
        DeclaredKind::Port => Declaration::Port(id, checked(spec)?),
        DeclaredKind::Guest => Declaration::Guest(id, checked(spec)?),
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
