//! Who works on a job: nodes of the farm, or this process.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant, SystemTime},
};

use shared::{
    farm::ids::AgentId,
    machine,
    net::{
        discovery::SearchOptions,
        greeting::JobCard,
        identity::{self, FarmKey, KEY_VARIABLE},
    },
};

use super::is_pass;
use crate::{
    failure::{ExitCode, Failure},
    farm::{
        RunReport,
        remote::{Farm, FarmOptions, Member},
        traffic::Sums,
    },
    job::resolved::{self, Job, Otherwise},
    launch::Payload,
    plan::Plan,
    report::{
        progress::{Event, Observer, Stage, Unit},
        summary::{FarmSummary, NamedLink, NodeSummary, StageBytes},
    },
};

/// Looks for nodes, if this machine has a farm key. `None`: work in this process. `alone`: no other run of this job is
/// alive on this machine.
pub fn gather(
    job: &Job,
    plan: &Plan,
    alone: bool,
    observer: &mut dyn Observer,
    stop: &AtomicBool,
) -> Result<Option<Farm>, Failure> {
    let wish = &job.farm;
    if wish.embedded {
        return Ok(None);
    }
    let no_key = |why: String| {
        Failure::new(ExitCode::NoFarm, why).help(
            "`svdjob farm init` makes a farm key; where there is a farm already, bring its key to this machine",
        )
    };
    let identity = match identity::find(wish.key.as_deref()) {
        Ok(Some(identity)) => identity,
        Ok(None) if wants_a_farm(wish) => {
            let place = identity::key_path(None).map_or_else(
                || "the configuration directory".to_owned(),
                |path| path.display().to_string(),
            );
            return Err(no_key(format!(
                "the job wants a farm, and this machine has no farm key: looked for {place} and at ${KEY_VARIABLE}"
            )));
        }
        Ok(None) => return Ok(None),
        Err(why) => return Err(no_key(why.to_string())),
    };
    if !wish.discover && wish.nodes.is_empty() && wish.ssh.is_empty() {
        return Ok(None);
    }
    observer.observe(Event::Stage(Stage {
        title: "looking for nodes".to_owned(),
        unit: Unit::Tasks,
        total: None,
        pass: None,
    }));
    let title = job.directory.file_name().map_or_else(
        || "factors".to_owned(),
        |name| name.to_string_lossy().into_owned(),
    );
    let options = FarmOptions {
        search: SearchOptions {
            fingerprint: identity.fingerprint(),
            discover: wish.discover,
            interface: wish.interface.clone(),
            hosts: wish.nodes.clone(),
        },
        identity,
        job: JobCard {
            plan: plan.hash,
            title,
            user: machine::user(),
            host: machine::host(),
            run: run_number(),
            alone,
        },
        memory_least: plan.memory_of_a_node(),
    };
    let farm = Farm::open(options).map_err(|why| Failure::resources(why.to_string()))?;
    if !wish.ssh.is_empty() {
        let path = identity::key_path(wish.key.as_deref()).unwrap_or_default();
        let key = FarmKey::read(&path).map_err(|why| {
            Failure::new(ExitCode::NoFarm, why.to_string()).help(
                "a node that was itself started over SSH cannot lend the farm's key; run this where the key is",
            )
        })?;
        // The end of its stdin ends a node, but a cable that was cut brings none: then it goes some time after its lease. To
        // wait for longer would help nobody: SSH gives up after 15 s, and with it ends the node's stdin when it is healed.
        let arguments = ["--no-advertise", "--exit-when-idle", "20"];
        let payload = Payload::gather(&key, arguments.map(str::to_owned).to_vec())?;
        farm.launch(&wish.ssh, payload);
    }
    let mut tell = |line| observer.observe(Event::Note(line));
    let found = farm.gather(wish.at_least as usize, wish.window, stop, &mut tell);
    if stop.load(Ordering::Relaxed) {
        return Err(Failure::interrupted());
    }
    if found >= wish.at_least as usize {
        return Ok(Some(farm));
    }
    let searched = farm.searched();
    drop(farm);
    let few = match found {
        0 => String::new(),
        1 => format!(", of {} wanted 1 is there", wish.at_least),
        n => format!(", of {} wanted {n} are there", wish.at_least),
    };
    match wish.otherwise {
        Otherwise::Fail => Err(
            Failure::new(ExitCode::NoFarm, format!("no farm{few}\n{searched}")).help(
                "start `svdnode` on other machines; --otherwise embedded works on this one alone",
            ),
        ),
        Otherwise::Embedded => {
            observer.observe(Event::Warning(format!(
                "no farm{few}; this machine works alone\n{searched}"
            )));
            Ok(None)
        }
    }
}

/// How long a run that wants a farm (`otherwise = "fail"`) waits when it has lost all of its nodes.
const LEFT_MAX: Duration = Duration::from_secs(60);

/// Whether the nodes of a run have left it, and since when.
#[derive(Default)]
pub struct Left {
    had: bool,
    since: Option<Instant>,
}

impl Left {
    /// What to say, now that so many nodes are there.
    pub fn tell(&mut self, now: Instant, nodes: usize) -> Option<Event> {
        match (nodes, self.since) {
            (0, None) if self.had => {
                self.since = Some(now);
                Some(Event::Warning(
                    "no node is left: waiting for one. Start `svdnode` again or on another machine; \
                     Ctrl-C ends the run, and the same command goes on from here"
                        .to_owned(),
                ))
            }
            (0, _) => None,
            (_, since) => {
                self.had = true;
                self.since = None;
                let waited = now.duration_since(since?).as_secs();
                Some(Event::Note(format!(
                    "a node is there again after {waited} s: the run goes on"
                )))
            }
        }
    }

    /// Whether that has been so for too long.
    pub fn is_over(&self, now: Instant, otherwise: Otherwise) -> bool {
        match otherwise {
            Otherwise::Fail => self
                .since
                .is_some_and(|since| now.duration_since(since) > LEFT_MAX),
            Otherwise::Embedded => false,
        }
    }
}

pub fn left() -> Failure {
    Failure::new(
        ExitCode::NoFarm,
        format!(
            "all nodes were lost, and none came for {} s",
            LEFT_MAX.as_secs()
        ),
    )
    .help("start `svdnode` on other machines; the same command goes on from the last finished pass")
}

/// Another one for every run.
fn run_number() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let nanoseconds = since.map_or(0, |d| d.as_nanos() as u64);
    nanoseconds ^ (u64::from(std::process::id()) << 40)
}

/// Whether the job says more than that a farm would be welcome.
fn wants_a_farm(wish: &resolved::Farm) -> bool {
    match wish.otherwise {
        Otherwise::Fail => true,
        Otherwise::Embedded => !wish.nodes.is_empty() || !wish.ssh.is_empty() || wish.key.is_some(),
    }
}

/// The farm, as the report shows it: a node that was lost and came back is one node.
pub fn summary(members: &[Member], report: &RunReport) -> FarmSummary {
    let mut nodes: BTreeMap<u64, NodeSummary> = BTreeMap::new();
    for member in members {
        let node = nodes.entry(member.card.id).or_insert_with(|| NodeSummary {
            host: member.card.host.clone(),
            address: member.address.to_string(),
            cores: member.card.cores,
            isa: member.card.isa.clone(),
            sent_bytes: 0,
            received_bytes: 0,
            lost: None,
        });
        node.sent_bytes += member.sent_bytes;
        node.received_bytes += member.received_bytes;
        node.lost.clone_from(&member.ended);
    }
    let mut nodes: Vec<NodeSummary> = nodes.into_values().collect();
    nodes.sort_by(|a, b| (&a.host, &a.address).cmp(&(&b.host, &b.address)));
    let name = |agent: AgentId| {
        let member = members.iter().find(|member| member.agent == agent);
        member.map_or_else(|| "svdjob".to_owned(), |member| member.card.host.clone())
    };
    let stages = (0..).zip(&report.stages).map(|(number, stage)| {
        let links = report.traffic.of(number);
        StageBytes {
            stage: stage.name.clone(),
            pass: is_pass(&stage.name),
            bytes: Sums::of(&links),
            links: links
                .iter()
                .map(|link| NamedLink {
                    from: name(link.from),
                    to: name(link.to),
                    blocks: link.blocks,
                    control: link.control,
                })
                .collect(),
        }
    });
    FarmSummary {
        nodes,
        stages: stages.collect(),
    }
}

/// Equal bits are promised for equal instruction sets only.
pub fn unlike(members: &[Member]) -> Option<String> {
    let sets: std::collections::BTreeSet<&str> =
        members.iter().map(|m| m.card.isa.as_str()).collect();
    (sets.len() > 1).then(|| {
        let sets: Vec<&str> = sets.into_iter().collect();
        format!(
            "the nodes compute with different instruction sets ({}): another farm may get other last bits",
            sets.join(", ")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_all_nodes_have_left_says_so_once_and_ends_if_it_wants_a_farm() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let mut left = Left::default();
        // Nobody has come yet: that is no loss.
        assert_eq!(left.tell(at(0), 0), None);
        assert_eq!(left.tell(at(1), 2), None);
        assert!(matches!(left.tell(at(2), 0), Some(Event::Warning(_))));
        assert_eq!(left.tell(at(50), 0), None);
        assert!(!left.is_over(at(62), Otherwise::Fail));
        assert!(left.is_over(at(63), Otherwise::Fail));
        assert!(!left.is_over(at(1000), Otherwise::Embedded));
        let back = left.tell(at(63), 1);
        assert!(matches!(back, Some(Event::Note(what)) if what.contains("after 61 s")));
        assert!(!left.is_over(at(1000), Otherwise::Fail));
        assert!(matches!(left.tell(at(1001), 0), Some(Event::Warning(_))));
    }
}
