//! The result for scripts: one object on stdout.

use serde_json::{Value, json};

use super::summary::Summary;
use crate::failure::{ExitCode, Failure};
use crate::job::diagnostics::Problems;

/// Of a run that has written its factors.
pub fn done(summary: &Summary) -> Value {
    let mut object = if summary.is_unconverged() {
        let code = ExitCode::Tolerance;
        json!({ "status": status(code), "code": code as u8 })
    } else {
        json!({ "status": "done", "code": 0 })
    };
    if let (Ok(Value::Object(result)), Some(object)) =
        (serde_json::to_value(summary), object.as_object_mut())
    {
        object.extend(result);
        object.insert("cumulative".into(), json!(summary.cumulative()));
    }
    object
}

/// Of one that did not.
pub fn failed(failure: &Failure) -> Value {
    json!({
        "status": status(failure.code),
        "code": failure.code as u8,
        "message": failure.message,
        "help": failure.help,
    })
}

/// Of one that did not begin, because its job file is wrong.
pub fn refused(problems: &Problems) -> Value {
    let mut object = problems.to_json();
    object["status"] = json!(status(problems.code));
    object["code"] = json!(problems.code as u8);
    object
}

fn status(code: ExitCode) -> &'static str {
    match code {
        ExitCode::Job => "job",
        ExitCode::Data => "data",
        ExitCode::Resources => "resources",
        ExitCode::NoFarm => "no-farm",
        ExitCode::Tolerance => "tolerance",
        ExitCode::Bug => "bug",
        ExitCode::Interrupted => "interrupted",
    }
}
