//! Questions about state over HTTP/JSON.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::HeaderMap;
use serde::Deserialize;
use serde_json::Value;
use truthdb_api::{ApiError, v1};

use super::json::time_of;
use super::{HttpError, Query, json_body};
use crate::server::{Shared, state};
use crate::{key_text, state_json};

type Answer = Result<Json<Value>, HttpError>;

/// Parameters that every question takes.
const OPTIONS: [&str; 6] = [
    "at",
    "as_of",
    "min_sequence",
    "deadline_ms",
    "generation",
    "partition",
];

/// A question to an operator.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct QueryBody {
    arguments_text: Option<String>,
    arguments_base64: Option<String>,
    at: Option<String>,
    as_of: Option<String>,
    min_sequence: Option<String>,
    #[serde(default)]
    deadline_ms: u64,
    #[serde(default)]
    generation: u32,
    partition: Option<u32>,
}

fn moment(
    at: Option<&str>,
    as_of: Option<&str>,
) -> Result<Option<v1::state_options::Moment>, ApiError> {
    use v1::state_options::Moment;
    match (at, as_of) {
        (Some(_), Some(_)) => Err(ApiError::invalid_argument(
            "`at` and `as_of` exclude each other",
        )),
        (Some(at), None) => Ok(Some(Moment::At(token("at", at)?))),
        (None, Some(time)) => Ok(Some(Moment::AsOfNs(time_of("as_of", time)?))),
        (None, None) => Ok(None),
    }
}

fn token(name: &str, text: &str) -> Result<v1::Token, ApiError> {
    state_json::parse_token(text)
        .map_err(|reason| ApiError::invalid_argument(format!("{name}: {reason}")))
}

fn options(query: &Query) -> Result<v1::StateOptions, ApiError> {
    let min_sequence = query.one("min_sequence");
    let generation = query.number("generation")?.unwrap_or(0);
    Ok(v1::StateOptions {
        moment: moment(query.one("at"), query.one("as_of"))?,
        min_sequence: min_sequence
            .map(|text| token("min_sequence", text))
            .transpose()?,
        deadline_ms: query.number("deadline_ms")?.unwrap_or(0),
        generation: u32::try_from(generation).map_err(|_| {
            ApiError::invalid_argument(format!("generation={generation} is no generation"))
        })?,
        partition: super::partition(query)?,
    })
}

/// Bytes from the parts of a key that are given under a name; absent: none are given.
fn key(query: &Query, name: &str) -> Result<Option<Vec<u8>>, ApiError> {
    let parts = query.all(name);
    if parts.is_empty() {
        return Ok(None);
    }
    key_text::key(parts.iter().map(String::as_str))
        .map(Some)
        .map_err(|reason| ApiError::invalid_argument(format!("{name}: {reason}")))
}

pub(super) async fn row(
    State(shared): State<Arc<Shared>>,
    Path((module, table)): Path<(String, String)>,
    RawQuery(query): RawQuery,
) -> Answer {
    let known: Vec<&str> = OPTIONS.into_iter().chain(["key"]).collect();
    let query = Query::parse(query.as_deref(), &known)?;
    let request = v1::StateGetRequest {
        module,
        table,
        key: key(&query, "key")?.unwrap_or_default().into(),
        options: Some(options(&query)?),
    };
    let answer = state::get(&shared, request).await?;
    Ok(Json(state_json::rows(&answer)))
}

pub(super) async fn rows(
    State(shared): State<Arc<Shared>>,
    Path((module, table)): Path<(String, String)>,
    RawQuery(query): RawQuery,
) -> Answer {
    let own = ["start", "end", "prefix", "reverse", "limit", "page"];
    let known: Vec<&str> = OPTIONS.into_iter().chain(own).collect();
    let query = Query::parse(query.as_deref(), &known)?;
    let limit = query.number("limit")?.unwrap_or(0);
    let page = match query.one("page") {
        None => Vec::new(),
        Some(text) => state_json::parse_page_token(text).ok_or_else(|| {
            ApiError::invalid_argument("page: use `next` of the answer before unchanged")
        })?,
    };
    let request = v1::StateScanRequest {
        module,
        table,
        start: key(&query, "start")?.unwrap_or_default().into(),
        end: key(&query, "end")?.map(Into::into),
        prefix: key(&query, "prefix")?.unwrap_or_default().into(),
        reverse: query.boolean("reverse")?,
        page_size: u32::try_from(limit).unwrap_or(u32::MAX),
        page_token: page.into(),
        options: Some(options(&query)?),
    };
    let answer = state::scan(&shared, request).await?;
    Ok(Json(state_json::rows(&answer)))
}

pub(super) async fn query(
    State(shared): State<Arc<Shared>>,
    Path(operator): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    let (body, _bytes): (QueryBody, _) = json_body(&shared, &headers, body).await?;
    let arguments = match (body.arguments_text, body.arguments_base64) {
        (Some(_), Some(_)) => {
            let reason = "`arguments_text` and `arguments_base64` exclude each other";
            return Err(ApiError::invalid_argument(reason).into());
        }
        (Some(text), None) => text.into_bytes(),
        (None, Some(text)) => BASE64
            .decode(text)
            .map_err(|error| ApiError::invalid_argument(format!("`arguments_base64`: {error}")))?,
        (None, None) => Vec::new(),
    };
    let least = body.min_sequence.as_deref();
    let request = v1::StateQueryRequest {
        operator,
        arguments: arguments.into(),
        options: Some(v1::StateOptions {
            moment: moment(body.at.as_deref(), body.as_of.as_deref())?,
            min_sequence: least.map(|text| token("min_sequence", text)).transpose()?,
            deadline_ms: body.deadline_ms,
            generation: body.generation,
            partition: body.partition,
        }),
    };
    let answer = state::query(&shared, request).await?;
    Ok(Json(state_json::answer(&answer)))
}
