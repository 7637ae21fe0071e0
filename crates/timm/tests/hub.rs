//! `--pretrained` against a server of the test's own that speaks the hub's protocol.
#![cfg(feature = "hub")]

mod support;

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use support::{Ran, Scratch, write_png};
use timm::graph::engine::Entry;
use timm::graph::{StateKind, Tensor};
use timm::models::ModelArgs;
use timm::models::pretrained::{ModelFilter, list_models, pretrained_cfg};
use timm::models::weights;

const REPO: &str = "timm/test_resnet.r160_in1k";
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const ETAG: &str = "feedfacefeedfacefeedface";

/// How the server answers.
#[derive(Default)]
struct Answers {
    /// Files by path in the repository.
    files: BTreeMap<String, Vec<u8>>,
    /// Bytes after which each of the next downloads breaks off.
    cuts: VecDeque<usize>,
    /// An error for everything.
    status: Option<u16>,
    /// Sends elsewhere for the bytes, as the hub does with large files.
    redirects: bool,
    /// Always sends the whole file.
    ignores_range: bool,
    etag: Option<&'static str>,
    /// First line and headers of every request, in lower case.
    requests: Vec<Vec<String>>,
}

struct Server {
    endpoint: String,
    answers: Arc<Mutex<Answers>>,
}

impl Server {
    fn new(files: &[(&str, &[u8])]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
        let files = files.iter().map(|(name, bytes)| (name.to_string(), bytes.to_vec())).collect();
        let answers = Arc::new(Mutex::new(Answers { files, ..Answers::default() }));
        let (shared, own) = (answers.clone(), endpoint.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A client that went away is no failure of the server.
                let _ = answer(stream, &own, &mut shared.lock().expect("the answers"));
            }
        });
        Server { endpoint, answers }
    }

    fn set(&self, change: impl FnOnce(&mut Answers)) {
        change(&mut self.answers.lock().expect("the answers"));
    }

    /// Value of a header in each request that has it.
    fn received(&self, header: &str) -> Vec<String> {
        let answers = self.answers.lock().expect("the answers");
        let prefix = format!("{header}: ");
        let lines = answers.requests.iter().flatten();
        lines.filter_map(|line| line.strip_prefix(&prefix)).map(str::to_string).collect()
    }
}

fn answer(mut stream: TcpStream, endpoint: &str, answers: &mut Answers) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let mut request = Vec::new();
    while let Some(line) = lines.next().transpose()?.filter(|line| !line.is_empty()) {
        request.push(line.to_lowercase());
    }
    let path = request.first().and_then(|line| line.split(' ').nth(1)).unwrap_or("").to_string();
    let range = request.iter().find_map(|line| line.strip_prefix("range: bytes=")).map(str::to_string);
    answers.requests.push(request);
    let mut reply = |status: &str, headers: &str, body: &[u8]| {
        write!(stream, "HTTP/1.1 {status}\r\nConnection: close\r\n{headers}\r\n")?;
        stream.write_all(body)
    };
    if let Some(status) = answers.status {
        return reply(&format!("{status} No"), "Content-Length: 0\r\n", b"");
    }
    let names = format!(
        "X-Repo-Commit: {COMMIT}\r\nETag: \"{0}\"\r\nX-Linked-ETag: \"{0}\"\r\n",
        answers.etag.unwrap_or(ETAG)
    );
    let of_repo = path.strip_prefix(&format!("/{REPO}/resolve/main/"));
    let (Some(name), moved) = (of_repo.or_else(|| path.strip_prefix("/store/")), of_repo.is_none()) else {
        return reply("404 Not Found", "Content-Length: 0\r\n", b"");
    };
    let Some(file) = answers.files.get(name) else {
        return reply("404 Not Found", "Content-Length: 0\r\n", b"");
    };
    if answers.redirects && !moved {
        let place = format!("{names}Location: {endpoint}/store/{name}\r\nContent-Length: 0\r\n");
        return reply("302 Found", &place, b"");
    }
    let (from, to) = range.as_deref().and_then(|range| range.split_once('-')).unwrap_or(("0", ""));
    let asks = to == "0";
    let from = if answers.ignores_range && !asks { 0 } else { from.parse().unwrap_or(0) };
    let to = to.parse().map_or(file.len(), |last: usize| last + 1);
    let body = &file[from..to];
    let headers = format!(
        "{names}Content-Range: bytes {from}-{}/{}\r\nContent-Length: {}\r\n",
        to - 1,
        file.len(),
        body.len()
    );
    let sent = if asks { body.len() } else { answers.cuts.pop_front().unwrap_or(body.len()).min(body.len()) };
    reply("206 Partial Content", &headers, &body[..sent])
}

/// A folder with weights, images and a cache.
struct Place {
    scratch: Scratch,
    weights: Vec<u8>,
}

impl Place {
    fn new() -> Self {
        let scratch = Scratch::new();
        let args = ModelArgs { seed: 5, ..ModelArgs::default() };
        let model = timm::create_model("test_resnet", &args).expect("the model");
        model.save(scratch.path("weights")).expect("saved");
        let numbers = (0..3 * 64 * 64).map(|i| (i as f32 * 0.37).sin()).collect();
        let input = Entry { kind: StateKind::Buffer, tensor: Tensor::new(&[1, 3, 64, 64], numbers) };
        weights::save(scratch.path("x"), [("input", &input)].into_iter(), &BTreeMap::new()).expect("saved");
        let weights = fs::read(scratch.path("weights")).expect("weights");
        Place { scratch, weights }
    }

    /// Runs `timm` with its cache here, at this endpoint.
    fn run(&self, endpoint: &str, words: &str, env: &[(&str, &str)]) -> Ran {
        let mut command = self.scratch.command(words);
        for name in
            ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH"]
        {
            command.env_remove(name);
        }
        for name in
            ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"]
        {
            command.env_remove(name);
        }
        command.env("HF_HOME", self.scratch.path("hf")).env("HF_ENDPOINT", endpoint);
        command.envs(env.iter().copied());
        let output = command.output().expect("timm starts");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
        let ran = Ran { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) };
        assert!(!ran.err.contains("panicked"), "timm {words}\n{}", ran.err);
        ran
    }

    fn ok(&self, endpoint: &str, words: &str) -> Ran {
        let ran = self.run(endpoint, words, &[]);
        assert_eq!(ran.code, Some(0), "timm {words}\n{}", ran.err);
        ran
    }

    fn error(&self, endpoint: &str, words: &str, env: &[(&str, &str)]) -> String {
        let ran = self.run(endpoint, words, env);
        assert_eq!(ran.code, Some(1), "timm {words}\n{}{}", ran.out, ran.err);
        assert_eq!(ran.err.matches("error: ").count(), 1, "{}", ran.err);
        ran.err
    }

    fn repo(&self) -> PathBuf {
        self.scratch.path("hf").join("hub").join(format!("models--{}", REPO.replace('/', "--")))
    }

    fn cached(&self) -> PathBuf {
        self.repo().join("snapshots").join(COMMIT).join("model.safetensors")
    }

    /// The weights are in the cache, whole, in the layout that other programs read.
    fn check_cache(&self) {
        assert!(fs::read(self.cached()).expect("the cached file") == self.weights, "other bytes");
        assert_eq!(fs::read_to_string(self.repo().join("refs/main")).expect("the revision"), COMMIT);
        assert!(fs::read(self.repo().join("blobs").join(ETAG)).expect("the blob") == self.weights);
        assert!(!self.repo().join("blobs").join(format!("{ETAG}.part")).exists());
    }
}

const INFO: &str = "info test_resnet --pretrained --json";

#[test]
fn fetched_once_and_used_by_every_command() {
    let place = Place::new();
    let server = Server::new(&[("model.safetensors", &place.weights)]);
    server.set(|answers| answers.redirects = true);
    let forward = "forward --model test_resnet --input x";
    let first = place.ok(&server.endpoint, &format!("{forward} --output fetched --pretrained"));
    assert!(first.err.contains(&format!("downloading {REPO}/model.safetensors")), "{}", first.err);
    place.check_cache();
    place.scratch.ok(&format!("{forward} --output loaded --checkpoint weights"));
    let output = |name: &str| support::tensor(&place.scratch.path(name), "output");
    assert!(output("fetched") == output("loaded"), "other weights");

    // From here on nobody answers.
    let gone = "http://127.0.0.1:9";
    let again = place.ok(gone, &format!("{forward} --output again --pretrained"));
    assert!(!again.err.contains("downloading"), "{}", again.err);
    assert!(output("again") == output("loaded"), "other weights");
    let offline = place.run(gone, INFO, &[("HF_HUB_OFFLINE", "1")]);
    assert_eq!(offline.json()["file"], place.cached().display().to_string());
    write_png(&place.scratch.path("a.png"), 40, 40, [200, 10, 10]);
    let shown = place.ok(gone, "infer a.png --model test_resnet --pretrained --img-size 32 --json").json();
    assert_eq!(shown[0]["top"].as_array().map(Vec::len), Some(5));
    let validated =
        place.ok(gone, "validate --model test_resnet --pretrained --num-classes 10 --img-size 16 --json");
    assert!(validated.err.contains("fc.weight: left at its initial value"), "{}", validated.err);
    place.ok(gone, "benchmark --model test_resnet --pretrained --img-size 32 -b 1 --num-bench-iter 1 --bench inference --json");
    let trained = place
        .ok(gone, "train --pretrained --epochs 1 --img-size 16 --lr 0 --warmup-epochs 0 --experiment run");
    assert!(trained.err.contains("fc.weight: left at its initial value"), "{}", trained.err);
    // Nothing was learned, so the run still has what it began with.
    let last = place.scratch.path("output/train/run/last.safetensors");
    let name = "layer3.0.conv2.weight";
    let begun = support::tensor(&place.scratch.path("weights"), name);
    assert!(support::tensor(&last, name) == begun, "training did not begin with the published weights");
}

#[test]
fn broken_transfers_go_on_where_they_stopped() {
    let place = Place::new();
    let server = Server::new(&[("model.safetensors", &place.weights)]);
    // Within one command, as long as something arrives.
    server.set(|answers| answers.cuts = VecDeque::from([100_000, 50_000]));
    place.ok(&server.endpoint, INFO);
    place.check_cache();
    let asked = server.received("range");
    let asked: Vec<&str> = asked.iter().map(String::as_str).filter(|range| *range != "bytes=0-0").collect();
    assert_eq!(asked, ["bytes=0-", "bytes=100000-", "bytes=150000-"]);

    // And in the next command.
    let place = Place::new();
    server.set(|answers| answers.cuts = VecDeque::from([100_000, 0]));
    let error = place.error(&server.endpoint, INFO, &[]);
    assert!(error.contains(&format!("cannot download {REPO}/model.safetensors from http://")), "{error}");
    assert!(!place.cached().exists());
    place.ok(&server.endpoint, INFO);
    place.check_cache();
    assert_eq!(server.received("range").last().map(String::as_str), Some("bytes=100000-"));
}

#[test]
fn wrong_bytes_are_never_found_again() {
    let place = Place::new();
    let server = Server::new(&[("model.safetensors", &place.weights)]);
    server.set(|answers| {
        answers.cuts = VecDeque::from([100_000]);
        answers.ignores_range = true;
    });
    let error = place.error(&server.endpoint, INFO, &[]);
    assert!(error.contains("bytes arrived, not"), "{error}");
    assert!(!place.cached().exists() && !place.repo().join("blobs").join(ETAG).exists());
    // What an interrupted program or a deleted blob leaves is in nobody's way.
    fs::write(place.repo().join("blobs").join(format!("{ETAG}.part")), &place.weights).expect("written");
    place.ok(&server.endpoint, INFO);
    place.check_cache();
    fs::remove_file(place.repo().join("blobs").join(ETAG)).expect("removed");
    place.ok(&server.endpoint, INFO);
    place.check_cache();

    let place = Place::new();
    server.set(|answers| answers.etag = Some("../../../../evil"));
    let error = place.error(&server.endpoint, INFO, &[]);
    assert!(error.contains("the server calls the file '../../../../evil'"), "{error}");
    assert!(!place.scratch.path("evil").exists());
}

#[test]
fn what_is_missing_is_named() {
    let place = Place::new();
    let server = Server::new(&[]);
    let error = place.error(&server.endpoint, INFO, &[]);
    assert!(error.contains(&format!("no file model.safetensors in the repository {REPO}")), "{error}");
    server.set(|answers| drop(answers.files.insert("pytorch_model.bin".into(), vec![1; 10])));
    let error = place.error(&server.endpoint, INFO, &[]);
    assert!(error.contains("only as pytorch_model.bin") && error.contains("save_file"), "{error}");
    assert!(!error.contains("HF_TOKEN"), "{error}");

    // Not published on the hub, and not published at all.
    let elsewhere = place.error(&server.endpoint, "info legacy_xception --pretrained", &[]);
    let url = pretrained_cfg("legacy_xception").expect("known").url.expect("a URL");
    assert!(elsewhere.contains(&url), "{elsewhere}");
    let names = list_models(&ModelFilter::default()).into_iter();
    let unpublished = names
        .filter(|name| !timm::models::registry::is_model_pretrained(name))
        .find(|name| timm::models::pretrained::tags(name).len() == 1)
        .expect("a model without weights");
    let error = place.error(&server.endpoint, &format!("info {unpublished} --pretrained"), &[]);
    assert!(error.contains("no weights were published for") && error.contains(&unpublished), "{error}");
    let usage = place.run(&server.endpoint, "infer x.png --pretrained", &[]);
    assert_eq!((usage.code, usage.err.contains("give --model too")), (Some(2), true), "{}", usage.err);
}

#[test]
fn closed_repositories_ask_for_a_token() {
    let place = Place::new();
    let server = Server::new(&[("model.safetensors", &place.weights)]);
    server.set(|answers| answers.status = Some(401));
    let error = place.error(&server.endpoint, INFO, &[]);
    assert!(error.contains(&format!("{}/{REPO} does not let us in (401)", server.endpoint)), "{error}");
    assert!(error.contains("licence") && error.contains("HF_TOKEN"), "{error}");
    assert!(server.received("authorization").is_empty());
    server.set(|answers| answers.status = Some(403));
    let error = place.error(&server.endpoint, INFO, &[("HF_TOKEN", "hf_secret\n")]);
    assert!(error.contains("the one that was sent does not open it"), "{error}");
    assert!(!error.contains("secret"), "{error}");
    assert_eq!(server.received("authorization"), ["bearer hf_secret"]);
    server.set(|answers| answers.status = Some(500));
    let error = place.error(&server.endpoint, INFO, &[]);
    assert!(error.contains("cannot download") && error.contains("500"), "{error}");
    assert!(!place.cached().exists());
}

#[test]
fn without_a_network() {
    let place = Place::new();
    // Bound once, so nobody else listens there.
    let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
    let down = format!("http://{free}/");
    let error = place.error(&down, INFO, &[]);
    assert!(
        error.contains(&format!("from http://{free}: ")) && error.contains("Without a network"),
        "{error}"
    );
    for endpoint in ["no-url", "ftp://x"] {
        let error = place.error(endpoint, INFO, &[]);
        assert!(error.contains(endpoint), "{error}");
    }
    let server = Server::new(&[("model.safetensors", &place.weights)]);
    for value in ["1", "ON", "true"] {
        let error = place.error(&server.endpoint, INFO, &[("HF_HUB_OFFLINE", value)]);
        assert!(error.contains("HF_HUB_OFFLINE is set") && error.contains("hf/hub"), "{error}");
    }
    assert!(server.received("host").is_empty(), "asked although offline");
    assert!(!Path::new(&place.repo()).exists());
    let folder = place.scratch.path("other").display().to_string();
    let ran = place.run(&server.endpoint, INFO, &[("HF_HUB_OFFLINE", "0"), ("HF_HUB_CACHE", &folder)]);
    assert!(ran.json()["file"].as_str().is_some_and(|file| file.starts_with(&folder)), "{}", ran.err);
}
