use std::path::Path;

use super::diagnostics::{Look, Source};
use super::overrides::Overrides;
use super::resolve::{LoadError, Loaded, load, resolve};

fn resolved(text: &str) -> Result<Loaded, String> {
    let source = Source {
        name: "factor.toml".into(),
        text: text.into(),
    };
    resolve(source, Path::new("/data"), &Overrides::default())
        .map_err(|problems| problems.render(Look::PLAIN))
}

fn complaint(text: &str) -> String {
    resolved(text).expect_err("the job file is wrong")
}

#[test]
fn show() {
    for t in [
        "",
        "[matrix]\nrows = 1\n",
        "[matrx]\npath = 1\n",
        "rank = 3\n[matrix]\npath = \"a\"\n",
        "[matrix]\npath = \"r.csv\"\nuser = 1\n[factor]\nrnak = 5\nrank = \"50\"\nprecision = \"f16\"\nseed = -1\npath=3\nzebra=1\n",
        "[matrix\npath = \"r.csv\"\n[factor]\nrank = \n",
        "[matrix]\npath = \"r.csv\"\nduplicates=\"first\"\nformat=\"csv\"\n[factor]\nrank=0\npower_iterations = 3\ntolerance=0.1\n[resources]\nmemory=\"lots\"\ncores=0\ncache_max=-1\n[report]\nnames={label=\"x\", nme=2}\nnearest=[1,\"a\"]",
        "[matrix]\npath = \"r.csv\"\nrows = 2\n[resources]\nmemory=4\n",
        "[matrix]\npath = [\"r.csv\"]\n\n[[factor]]\n",
        "matrix = 3\n",
    ] {
        println!("{}=================", complaint(t));
    }
}
