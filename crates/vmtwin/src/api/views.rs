//! What is looked at: guests, snapshots, schedules, the cluster, growth, the audit. All of it is from
//! the catalog: no guest, repository or node is asked.

use std::collections::{BTreeMap, HashMap};

use anyhow::Result;
use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use time::{Duration, OffsetDateTime};
use utoipa::IntoParams;
use vmtwin_catalog::{Cursor, Job, JobState, NodeId, Scope, Snapshot, SnapshotSummary, Vm, VmRole};
use vmtwin_server::Problem;

use super::access::{Caller, Named, Params};
use super::jobs::limited;
use super::model::{
    Audited, ClusterBackup, ClusterView, ConnectionView, Day, DeletionView, DiskView, Guest,
    GuestSchedule, LastJob, ListOf, NodeView, Overview, ProblemView, RunView, ScheduleView, Size,
    SnapshotView, days,
};
use super::protection::{self, Followed};
use super::{Answer, Api, Shared};
use crate::command::schedule as words;

/// Snapshots of a trend.
const TREND: u32 = 30;
/// Runs of a schedule that are shown.
const RUNS: u32 = 20;
/// Due times that are shown.
const DUE: usize = 5;
/// After which silence of its agent a node counts as silent.
const SILENCE: Duration = Duration::minutes(2);
/// Days of growth.
const DAYS: u32 = 730;

/// Whether the catalog answers.
#[utoipa::path(get, path = "/readyz", tag = "service",
    responses((status = 200, body = String, content_type = "text/plain"), (status = 503, body = ProblemView)))]
pub(super) async fn ready(State(api): State<Shared>) -> Answer<&'static str> {
    let asked = api.blocking(|api| Ok(api.db.run(async |c| c.schedules().await)?));
    match asked.await {
        Ok(_) => Ok("ok\n"),
        Err(_) => Err(Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "the catalog cannot be reached",
        )),
    }
}

/// Figures for Prometheus.
#[utoipa::path(get, path = "/metrics", tag = "service",
    responses((status = 200, body = String, content_type = "text/plain"), (status = "4XX", body = ProblemView)))]
pub(super) async fn metrics(State(api): State<Shared>, _caller: Caller) -> Answer<Response> {
    let text = api
        .blocking(|api| crate::metrics::render(&api.db, true))
        .await?;
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    Ok((kind, text).into_response())
}

/// What is known of all guests at once.
struct Known {
    now: OffsetDateTime,
    latest: HashMap<String, Snapshot>,
    trends: HashMap<String, Vec<SnapshotSummary>>,
    jobs: HashMap<String, Job>,
    schedules: Vec<Followed>,
    nodes: HashMap<NodeId, String>,
}

impl Known {
    fn of(api: &Api) -> Result<Known> {
        let now = OffsetDateTime::now_utc();
        let mut trends: HashMap<String, Vec<SnapshotSummary>> = HashMap::new();
        for size in api.db.run(async |c| c.trends(TREND).await)? {
            let of_it = trends.entry(size.vm_name.clone()).or_default();
            // The same point in several repositories is one.
            if of_it.last().is_none_or(|last| last.time != size.time) {
                of_it.push(size);
            }
        }
        let latest = api.db.run(async |c| c.latest_snapshots().await)?;
        let jobs = api.db.run(async |c| c.latest_backups().await)?;
        let by_vm = |job: Job| Some((job.vm_id.as_ref()?.to_string(), job));
        let schedules = api.db.run(async |c| c.schedules().await)?;
        let nodes = api.db.run(async |c| c.nodes().await)?;
        Ok(Known {
            now,
            nodes: nodes.into_iter().map(|node| (node.id, node.name)).collect(),
            latest: latest
                .into_iter()
                .map(|snapshot| (snapshot.vm_name.clone(), snapshot))
                .collect(),
            trends,
            jobs: jobs.into_iter().filter_map(by_vm).collect(),
            schedules: Followed::all(&schedules, now),
        })
    }

    fn guest(&mut self, vm: &Vm) -> Guest {
        let schedules: Vec<&Followed> = self.schedules.iter().filter(|s| s.is_of(vm)).collect();
        let last = self.latest.get(&vm.name);
        let job = self.jobs.get(vm.id.as_str());
        let failed = job.filter(|job| {
            job.state == JobState::Failed && last.is_none_or(|last| last.time < job.started_at)
        });
        let failed = failed.map(|job| job.error.as_deref().unwrap_or("the last backup failed"));
        let (protection, reason) = protection::of(last, failed, &schedules, self.now);
        let trend = self.trends.remove(&vm.name).unwrap_or_default();
        Guest {
            id: vm.id.to_string(),
            name: vm.name.clone(),
            node: vm.node.as_ref().and_then(|id| self.nodes.get(id)).cloned(),
            state: vm.state.to_string(),
            connection: ConnectionView {
                kind: vm.connection.kind.to_string(),
                address: vm.connection.address.clone(),
            },
            memory_bytes: vm.memory_bytes,
            disk_bytes: vm.disks.iter().map(|disk| disk.found.size_bytes).sum(),
            protection: protection.to_owned(),
            reason,
            last_good: last.map(SnapshotView::from),
            last_job: job.map(|job| LastJob {
                state: job.state.to_string(),
                error: job.error.clone(),
                started_at: job.started_at,
                ended_at: job.ended_at,
            }),
            schedules: schedules
                .iter()
                .map(|schedule| GuestSchedule {
                    name: schedule.name.clone(),
                    next: schedule.next,
                })
                .collect(),
            trend: trend
                .into_iter()
                .map(|size| Size {
                    time: size.time,
                    bytes_new: size.bytes_new,
                    bytes_stored: size.bytes_stored,
                })
                .collect(),
            disks: None,
        }
    }
}

fn guests(api: &Api) -> Result<Vec<Vm>> {
    let vms = api.db.run(async |c| c.vms().await)?;
    let mut guests: Vec<Vm> = vms
        .into_iter()
        .filter(|vm| vm.role == VmRole::Guest)
        .collect();
    guests.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(guests)
}

/// Is everything protected?
#[utoipa::path(get, path = "/api/v1/overview", tag = "guests",
    responses((status = 200, body = Overview), (status = "4XX", body = ProblemView)))]
pub(super) async fn overview(State(api): State<Shared>, _caller: Caller) -> Answer<Json<Overview>> {
    let overview = api.blocking(|api| {
        let mut known = Known::of(api)?;
        let guests: Vec<Guest> = guests(api)?.iter().map(|vm| known.guest(vm)).collect();
        let words = ["protected", "late", "failing", "never", "unscheduled"];
        let count = |word: &str| {
            guests
                .iter()
                .filter(|guest| guest.protection == word)
                .count()
        };
        let mut counts: BTreeMap<String, usize> = words
            .iter()
            .map(|word| ((*word).to_owned(), count(word)))
            .collect();
        counts.insert("guests".to_owned(), guests.len());
        Ok(Overview {
            now: known.now,
            host: api.host.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            guests,
            counts,
            running_jobs: api.runner.hub().count(),
        })
    });
    Ok(Json(overview.await?))
}

/// A guest, with its disks.
#[utoipa::path(get, path = "/api/v1/vms/{name}", tag = "guests", params(("name" = String, Path)),
    responses((status = 200, body = Guest), (status = "4XX", body = ProblemView)))]
pub(super) async fn vm(
    State(api): State<Shared>,
    _caller: Caller,
    Named(name): Named,
) -> Answer<Json<Guest>> {
    let guest = api.blocking(move |api| {
        let Some(vm) = guests(api)?.into_iter().find(|vm| vm.name == name) else {
            return Ok(None);
        };
        let disk = |disk: &vmtwin_catalog::Disk| DiskView {
            disk_id: disk.found.disk_id.clone(),
            address: disk.found.address.clone(),
            kind: disk.found.kind.clone(),
            size_bytes: disk.found.size_bytes,
            format: disk.found.format.clone(),
            included: disk.found.included,
        };
        let disks = vm.disks.iter().map(disk).collect();
        Ok(Some(Guest {
            disks: Some(disks),
            ..Known::of(api)?.guest(&vm)
        }))
    });
    let none = || super::not_found("there is no guest of this name; see vmtwin vm list");
    guest.await?.map(Json).ok_or_else(none)
}

/// Which snapshots.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct WhichSnapshots {
    /// Of this guest.
    vm: Option<String>,
    /// How many at most.
    #[param(minimum = 1, maximum = 500)]
    limit: Option<u32>,
    /// Where a list before ended.
    cursor: Option<String>,
}

/// Snapshots, the latest first.
#[utoipa::path(get, path = "/api/v1/snapshots", tag = "snapshots", params(WhichSnapshots),
    responses((status = 200, body = ListOf<SnapshotView>), (status = "4XX", body = ProblemView)))]
pub(super) async fn snapshots(
    State(api): State<Shared>,
    _caller: Caller,
    Params(which): Params<WhichSnapshots>,
) -> Answer<Json<ListOf<SnapshotView>>> {
    let list = api.blocking(move |api| {
        let cursor = which
            .cursor
            .as_deref()
            .map(str::parse::<Cursor>)
            .transpose()?;
        let (vm, limit) = (which.vm.as_deref(), limited(which.limit)?);
        let page = api
            .db
            .run(async |c| c.snapshots_page(vm, cursor.as_ref(), limit).await)?;
        Ok(ListOf {
            items: page.items.iter().map(SnapshotView::from).collect(),
            next: page.next.map(|next| next.to_string()),
        })
    });
    Ok(Json(list.await?))
}

/// A snapshot, with what its backup reported.
#[utoipa::path(get, path = "/api/v1/snapshots/{id}", tag = "snapshots",
    params(("id" = String, Path, description = "its id, or the first digits of it")),
    responses((status = 200, body = SnapshotView), (status = "4XX", body = ProblemView)))]
pub(super) async fn snapshot(
    State(api): State<Shared>,
    _caller: Caller,
    Named(id): Named,
) -> Answer<Json<SnapshotView>> {
    if id.len() < 4 || id.len() > 64 || !id.chars().all(|c| c.is_ascii_hexdigit()) {
        return Err(super::not_found("there is no snapshot of this id"));
    }
    let found = api
        .blocking(move |api| Ok(api.db.run(async |c| c.snapshots_by_prefix(&id).await)?))
        .await?;
    let mut ids: Vec<&str> = found.iter().map(|one| one.id.as_str()).collect();
    ids.dedup();
    match (found.first(), ids.len()) {
        (Some(snapshot), 1) => Ok(Json(SnapshotView {
            report: Some(snapshot.report.clone()),
            ..SnapshotView::from(snapshot)
        })),
        (None, _) => Err(super::not_found("there is no snapshot of this id")),
        _ => Err(super::not_found(
            "several snapshots begin so; give more digits",
        )),
    }
}

/// The schedules, with their next due times and last runs.
#[utoipa::path(get, path = "/api/v1/schedules", tag = "schedules",
    responses((status = 200, body = ListOf<ScheduleView>), (status = "4XX", body = ProblemView)))]
pub(super) async fn schedules(
    State(api): State<Shared>,
    _caller: Caller,
) -> Answer<Json<ListOf<ScheduleView>>> {
    let list = api.blocking(|api| {
        let names: HashMap<String, String> = guests(api)?
            .into_iter()
            .map(|vm| (vm.id.to_string(), vm.name))
            .collect();
        let schedules = api.db.run(async |c| c.schedules().await)?;
        let items = schedules
            .into_iter()
            .map(|schedule| view(api, schedule, &names));
        Ok(ListOf {
            items: items.collect::<Result<_>>()?,
            next: None,
        })
    });
    Ok(Json(list.await?))
}

fn view(
    api: &Api,
    schedule: vmtwin_catalog::Schedule,
    names: &HashMap<String, String>,
) -> Result<ScheduleView> {
    let runs = api.db.run(async |c| c.runs(&schedule.id, RUNS).await)?;
    let spec = crate::timer::Spec::of(&schedule)?;
    let run = |run: vmtwin_catalog::ScheduleRun| RunView {
        due_at: run.due_at,
        subject: names.get(&run.subject).cloned().unwrap_or(run.subject),
        outcome: run.outcome.map(|outcome| outcome.to_string()),
        note: run.note,
    };
    Ok(ScheduleView {
        when: words::when(&spec),
        what: words::guests(&spec),
        host: words::follower(&spec),
        next: words::next_due(&spec, schedule.created_at, DUE)?,
        name: schedule.name,
        enabled: schedule.enabled,
        spec: schedule.spec,
        last: runs.into_iter().map(run).collect(),
    })
}

/// The cluster: its nodes, and the backups of its configuration that this host has.
#[utoipa::path(get, path = "/api/v1/cluster", tag = "cluster",
    responses((status = 200, body = ClusterView), (status = "4XX", body = ProblemView)))]
pub(super) async fn cluster(
    State(api): State<Shared>,
    _caller: Caller,
) -> Answer<Json<ClusterView>> {
    let view = api.blocking(|api| {
        let cluster = api.db.run(async |c| c.cluster().await)?;
        let nodes = api.db.run(async |c| c.nodes().await)?;
        let folder = api.home.cluster_dir()?;
        let backups = crate::cluster::backup::list(&folder)?;
        let now = OffsetDateTime::now_utc();
        let node = |node: vmtwin_catalog::Node| NodeView {
            state: match &node.address {
                None => "alone",
                Some(_) if now - node.seen_at > SILENCE => "silent",
                Some(_) => "up",
            }
            .to_owned(),
            name: node.name,
            host: node.host,
            version: node.version,
            address: node.address,
            seen_at: node.seen_at,
        };
        Ok(ClusterView {
            cluster: cluster.map(|cluster| cluster.name),
            nodes: nodes.into_iter().map(node).collect(),
            backups: backups
                .into_iter()
                .map(|backup| ClusterBackup {
                    file: backup.file.display().to_string(),
                    bytes: backup.bytes,
                    time: backup.time,
                    nodes: backup.nodes,
                    collected: backup.collected,
                })
                .collect(),
        })
    });
    Ok(Json(view.await?))
}

/// What the snapshots of each day brought.
#[utoipa::path(get, path = "/api/v1/growth", tag = "snapshots",
    responses((status = 200, body = [Day]), (status = "4XX", body = ProblemView)))]
pub(super) async fn growth(State(api): State<Shared>, _caller: Caller) -> Answer<Json<Vec<Day>>> {
    let growth = api.blocking(|api| Ok(api.db.run(async |c| c.growth(DAYS).await)?));
    Ok(Json(days(growth.await?)))
}

/// The snapshots that were forgotten and stay until their time; what is removed first comes first.
#[utoipa::path(get, path = "/api/v1/deletions", tag = "snapshots",
    responses((status = 200, body = [DeletionView]), (status = "4XX", body = ProblemView)))]
pub(super) async fn deletions(
    State(api): State<Shared>,
    _caller: Caller,
) -> Answer<Json<Vec<DeletionView>>> {
    let waiting = api.blocking(|api| Ok(api.db.run(async |c| c.deletions(None).await)?));
    Ok(Json(
        waiting.await?.into_iter().map(DeletionView::from).collect(),
    ))
}

/// Which part.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Part {
    /// How many at most.
    #[param(minimum = 1, maximum = 500)]
    limit: Option<u32>,
    /// Where a list before ended.
    cursor: Option<String>,
}

/// What was asked for, the latest first.
#[utoipa::path(get, path = "/api/v1/audit", tag = "access", params(Part),
    responses((status = 200, body = ListOf<Audited>), (status = "4XX", body = ProblemView)))]
pub(super) async fn audit(
    State(api): State<Shared>,
    caller: Caller,
    Params(part): Params<Part>,
) -> Answer<Json<ListOf<Audited>>> {
    caller.needs(Scope::Admin)?;
    let list = api.blocking(move |api| {
        let cursor = part
            .cursor
            .as_deref()
            .map(str::parse::<Cursor>)
            .transpose()?;
        let limit = limited(part.limit)?;
        let page = api
            .db
            .run(async |c| c.audit(cursor.as_ref(), limit).await)?;
        Ok(ListOf {
            items: page.items.into_iter().map(Audited::from).collect(),
            next: page.next.map(|next| next.to_string()),
        })
    });
    Ok(Json(list.await?))
}
