//! Who belongs to a farm: the farm key, and the certificates made from it.
//!
//! A farm key is one file: the certificate and the key of the farm's own authority. Every process that has it mints a
//! certificate for itself; both ends of a connection ask for one of the same authority, and believe nothing else. A node
//! that was started over SSH is lent a certificate instead, good for some days, and never sees the authority's key.
//!
//! Certificates name no addresses: all carry the one name [`SERVER_NAME`], so a node may move. Those minted from the key
//! are valid for a century in both directions, so no node is refused for its clock; the key beside them lives as long.

use std::{
    fmt, fs,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use etcetera::{BaseStrategy, choose_base_strategy};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PublicKeyData, date_time_ymd,
};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::ring::default_provider,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime, pem::PemObject},
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// The name in every certificate.
pub const SERVER_NAME: &str = "node.svdjob.internal";
/// Protocol of the connections, as TLS calls it.
pub const ALPN: &[u8] = b"svdjob/1";
/// Names another file than the user's own.
pub const KEY_VARIABLE: &str = "SVDJOB_FARM_KEY";

const RESET_CONTEXT: &str = "svdjob farm key: secret of stateless resets";

/// Tells farms apart at a glance: the first bytes of the hash of the authority's certificate.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Fingerprint(pub [u8; 8]);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for pair in self.0.chunks(2) {
            if pair.as_ptr() != self.0.as_ptr() {
                write!(f, "-")?;
            }
            write!(f, "{:02x}{:02x}", pair[0], pair[1])?;
        }
        Ok(())
    }
}

impl Fingerprint {
    /// Reads what [`Display`](fmt::Display) writes.
    pub fn parse(text: &str) -> Option<Self> {
        let digits: String = text.chars().filter(|c| *c != '-').collect();
        let number = u64::from_str_radix(&digits, 16).ok()?;
        (digits.len() == 16).then(|| Self(number.to_be_bytes()))
    }

    fn of(certificate: &CertificateDer<'_>) -> Self {
        let hash = blake3::hash(certificate);
        Self(hash.as_bytes()[..8].try_into().expect("eight bytes"))
    }
}

/// Why there is no usable key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("could not read the farm key {}: {why}", path.display())]
    Unreadable { path: PathBuf, why: io::Error },
    #[error("{} is not a farm key: {why}", path.display())]
    NotAKey { path: PathBuf, why: KeyErrorKind },
    #[error("{} exists already", path.display())]
    Exists { path: PathBuf },
    #[error("could not write the farm key {}: {why}", path.display())]
    Unwritable { path: PathBuf, why: io::Error },
}

/// What is wrong with a key, wherever it came from.
#[derive(Debug, thiserror::Error)]
pub enum KeyErrorKind {
    #[error("{0}")]
    Text(String),
    #[error("{0}")]
    Crypto(String),
}

impl From<rcgen::Error> for KeyErrorKind {
    fn from(why: rcgen::Error) -> Self {
        Self::Crypto(why.to_string())
    }
}

impl From<rustls::Error> for KeyErrorKind {
    fn from(why: rustls::Error) -> Self {
        Self::Crypto(why.to_string())
    }
}

/// The authority of a farm.
pub struct FarmKey {
    authority: CertificateDer<'static>,
    key: KeyPair,
}

impl fmt::Debug for FarmKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FarmKey({})", self.fingerprint())
    }
}

impl FarmKey {
    /// A new farm.
    pub fn create() -> Result<Self, KeyErrorKind> {
        let key = KeyPair::generate()?;
        let authority = Self::params(&key).self_signed(&key)?.der().clone();
        Ok(Self { authority, key })
    }

    /// What stands in the authority's certificate.
    fn params(key: &KeyPair) -> CertificateParams {
        let mut params = CertificateParams::default();
        // A subject of its own: a stranger is told that the issuer is unknown, not that a signature is bad.
        let name = blake3::hash(&key.subject_public_key_info()).to_hex();
        params
            .distinguished_name
            .push(DnType::CommonName, format!("svdjob farm {}", &name[..16]));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        always(&mut params);
        params
    }

    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.authority)
    }

    pub fn from_pem(text: &str) -> Result<Self, KeyErrorKind> {
        let certificates: Vec<_> = CertificateDer::pem_slice_iter(text.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|why| KeyErrorKind::Text(why.to_string()))?;
        let [authority] = <[_; 1]>::try_from(certificates)
            .map_err(|c| KeyErrorKind::Text(format!("it has {} certificates, not one", c.len())))?;
        let key = PrivatePkcs8KeyDer::from_pem_slice(text.as_bytes())
            .map_err(|why| KeyErrorKind::Text(why.to_string()))?;
        let key = KeyPair::try_from(&key)?;
        Ok(Self { authority, key })
    }

    pub fn read(path: &Path) -> Result<Self, KeyError> {
        read(path, Self::from_pem)
    }

    fn pem(&self) -> String {
        pem("CERTIFICATE", &self.authority) + &pem("PRIVATE KEY", &self.key.serialize_der())
    }

    /// Writes the key where only its owner can read it; never over another.
    pub fn write(&self, path: &Path) -> Result<(), KeyError> {
        let fail = |why: io::Error| KeyError::Unwritable {
            path: path.to_owned(),
            why,
        };
        if let Some(dir) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
            fs::create_dir_all(dir).map_err(fail)?;
        }
        let text = self.pem();
        let temporary = path.with_extension(format!("new-{}", std::process::id()));
        let mut options = fs::OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let written = options
            .open(&temporary)
            .and_then(|mut file| {
                file.write_all(text.as_bytes())?;
                file.sync_all()
            })
            // Unlike a rename, a link is never made over another file.
            .and_then(|()| fs::hard_link(&temporary, path));
        let _ = fs::remove_file(&temporary);
        written.map_err(|why| match why.kind() {
            io::ErrorKind::AlreadyExists => KeyError::Exists {
                path: path.to_owned(),
            },
            _ => fail(why),
        })
    }

    /// A certificate for this process. A key whose certificate does not vouch for it was changed.
    pub fn identity(&self) -> Result<Identity, KeyErrorKind> {
        let mut params = CertificateParams::new(vec![SERVER_NAME.to_owned()])?;
        always(&mut params);
        let identity = self.sign(&params)?;
        identity
            .verifier()?
            .verify_client_cert(&identity.certificate, &[], UnixTime::now())
            .map_err(|why| {
                KeyErrorKind::Text(format!(
                    "its certificate does not vouch for what its key signs ({why}); was it made by `svdjob farm`, and is it as it was made?"
                ))
            })?;
        Ok(identity)
    }

    /// What a node that is started over SSH is lent, as text: a certificate good from now for so many days, its key, and
    /// the authority's certificate.
    pub fn lend(&self, days: u32) -> Result<String, KeyErrorKind> {
        self.lend_until(SystemTime::now() + DAY * days)
    }

    /// The same, good until then.
    pub fn lend_until(&self, end: SystemTime) -> Result<String, KeyErrorKind> {
        let mut params = CertificateParams::new(vec![SERVER_NAME.to_owned()])?;
        // The clock of the other machine may be behind.
        params.not_before = (SystemTime::now() - DAY).into();
        params.not_after = end.into();
        let lent = self.sign(&params)?;
        Ok(pem("CERTIFICATE", &lent.certificate)
            + &pem("PRIVATE KEY", lent.key.secret_pkcs8_der())
            + &pem("CERTIFICATE", &self.authority))
    }

    fn sign(&self, params: &CertificateParams) -> Result<Identity, KeyErrorKind> {
        // Not as the certificate says: one that was changed may name what cannot be written.
        let authority = Self::params(&self.key);
        let issuer = Issuer::from_params(&authority, &self.key);
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &issuer)?.der().clone();
        Ok(Identity {
            authority: self.authority.clone(),
            certificate,
            key: PrivatePkcs8KeyDer::from(key.serialize_der()),
            secret: blake3::derive_key(RESET_CONTEXT, &self.key.serialize_der()),
        })
    }
}

fn read<T>(path: &Path, from_pem: fn(&str) -> Result<T, KeyErrorKind>) -> Result<T, KeyError> {
    let text = fs::read_to_string(path).map_err(|why| KeyError::Unreadable {
        path: path.to_owned(),
        why,
    })?;
    from_pem(&text).map_err(|why| KeyError::NotAKey {
        path: path.to_owned(),
        why,
    })
}

/// Valid whatever a clock says.
fn always(params: &mut CertificateParams) {
    params.not_before = date_time_ymd(1975, 1, 1);
    params.not_after = date_time_ymd(4096, 1, 1);
}

fn pem(label: &str, der: &[u8]) -> String {
    pem::encode(&pem::Pem::new(label, der))
}

/// What a process proves that it belongs to a farm with.
#[derive(Debug)]
pub struct Identity {
    authority: CertificateDer<'static>,
    certificate: CertificateDer<'static>,
    key: PrivatePkcs8KeyDer<'static>,
    /// For stateless resets: the same in every process with the farm's key, and after its restart.
    secret: [u8; 32],
}

impl Clone for Identity {
    fn clone(&self) -> Self {
        Self {
            authority: self.authority.clone(),
            certificate: self.certificate.clone(),
            key: self.key.clone_key(),
            secret: self.secret,
        }
    }
}

impl Identity {
    /// Reads a farm key, or what was [lent](FarmKey::lend).
    pub fn from_pem(text: &str) -> Result<Self, KeyErrorKind> {
        let certificates: Vec<CertificateDer<'static>> =
            CertificateDer::pem_slice_iter(text.as_bytes())
                .collect::<Result<_, _>>()
                .map_err(|why| KeyErrorKind::Text(why.to_string()))?;
        let key = PrivatePkcs8KeyDer::from_pem_slice(text.as_bytes())
            .map_err(|why| KeyErrorKind::Text(why.to_string()))?;
        match &certificates[..] {
            [_] => Ok(FarmKey::from_pem(text)?.identity()?),
            [certificate, authority] => Ok(Self {
                authority: authority.clone(),
                certificate: certificate.clone(),
                secret: blake3::derive_key(RESET_CONTEXT, key.secret_pkcs8_der()),
                key,
            }),
            other => Err(KeyErrorKind::Text(format!(
                "it has {} certificates, not one (a farm key) or two (a lent one)",
                other.len()
            ))),
        }
    }

    pub fn read(path: &Path) -> Result<Self, KeyError> {
        read(path, Self::from_pem)
    }

    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.authority)
    }

    /// A secret that all processes with this farm's key share, and a node keeps over its restarts.
    pub fn reset_secret(&self) -> [u8; 32] {
        self.secret
    }

    fn roots(&self) -> Result<Arc<RootCertStore>, KeyErrorKind> {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.clone())?;
        Ok(Arc::new(roots))
    }

    fn chain(&self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        (vec![self.certificate.clone()], self.key.clone_key().into())
    }

    /// Lets in members of the farm.
    fn verifier(&self) -> Result<Arc<dyn ClientCertVerifier>, KeyErrorKind> {
        WebPkiClientVerifier::builder_with_provider(self.roots()?, Arc::new(default_provider()))
            .build()
            .map_err(|why| KeyErrorKind::Crypto(why.to_string()))
    }

    /// TLS for those who are called: TLS 1.3, and only for members of the farm.
    pub fn server(&self) -> Result<QuicServerConfig, KeyErrorKind> {
        let (chain, key) = self.chain();
        let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(self.verifier()?)
            .with_single_cert(chain, key)?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        QuicServerConfig::try_from(config).map_err(|why| KeyErrorKind::Crypto(why.to_string()))
    }

    /// TLS for those who call.
    pub fn client(&self) -> Result<QuicClientConfig, KeyErrorKind> {
        let (chain, key) = self.chain();
        let mut config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(self.roots()?)
            .with_client_auth_cert(chain, key)?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        QuicClientConfig::try_from(config).map_err(|why| KeyErrorKind::Crypto(why.to_string()))
    }
}

/// Where the user's own farm key is: `svdjob/farm.pem` in the configuration directory.
pub fn usual_path() -> Option<PathBuf> {
    let base = choose_base_strategy().ok()?;
    Some(base.config_dir().join("svdjob").join("farm.pem"))
}

/// Where a farm key was looked for, in order of weight: the flag, [`KEY_VARIABLE`], the [usual path](usual_path).
pub fn key_path(flag: Option<&Path>) -> Option<PathBuf> {
    flag.map(Path::to_owned)
        .or_else(|| {
            std::env::var_os(KEY_VARIABLE)
                .filter(|v| !v.is_empty())
                .map(PathBuf::from)
        })
        .or_else(usual_path)
}

/// The identity of this process, if there is a key. A key that was named and is not there is an error.
pub fn find(flag: Option<&Path>) -> Result<Option<Identity>, KeyError> {
    let Some(path) = key_path(flag) else {
        return Ok(None);
    };
    let named = flag.is_some() || std::env::var_os(KEY_VARIABLE).is_some_and(|v| !v.is_empty());
    match Identity::read(&path) {
        Ok(identity) => Ok(Some(identity)),
        Err(KeyError::Unreadable { why, .. })
            if why.kind() == io::ErrorKind::NotFound && !named =>
        {
            Ok(None)
        }
        Err(why) => Err(why),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::*;
    use crate::harm::{harmed, largest_allocation};

    static KEY: LazyLock<FarmKey> = LazyLock::new(|| FarmKey::create().unwrap());
    static LENT: LazyLock<String> = LazyLock::new(|| KEY.lend(1).unwrap());

    proptest! {
        #[test]
        fn a_harmed_key_is_refused_in_words_or_makes_an_identity(
            texts in (
                harmed(KEY.pem().into_bytes()),
                harmed(LENT.clone().into_bytes()),
            ),
        ) {
            for text in [texts.0, texts.1] {
                let text = String::from_utf8_lossy(&text);
                let (read, most) = largest_allocation(|| {
                    (Identity::from_pem(&text), FarmKey::from_pem(&text))
                });
                prop_assert!(most <= 1 << 20, "{} bytes at once", most);
                match read.0 {
                    // A byte in the middle of a certificate shows when it is used.
                    Ok(identity) => {
                        let _ = (identity.server(), identity.client(), identity.fingerprint());
                    }
                    Err(why) => prop_assert!(!why.to_string().is_empty()),
                }
                if let Err(why) = read.1 {
                    prop_assert!(!why.to_string().is_empty());
                }
            }
        }
    }

    #[test]
    fn a_key_whose_certificate_was_changed_is_refused_in_words() {
        let key = FarmKey::create().unwrap();
        assert!(key.identity().is_ok());
        let name = [6, 3, 0x55, 4, 3];
        let certificate = key.authority.to_vec();
        let places: Vec<usize> = (0..certificate.len() - 5)
            .filter(|at| certificate[*at..].starts_with(&name))
            .collect();
        let [_, subject] = places[..] else {
            panic!("of the issuer and of the subject: {places:?}")
        };
        // An object identifier that cannot be written, and one that only means something else.
        for byte in [0x95, 0x54] {
            let mut certificate = certificate.clone();
            certificate[subject + 2] = byte;
            let changed = FarmKey {
                authority: certificate.into(),
                key: KeyPair::try_from(key.key.serialize_der()).unwrap(),
            };
            let why = changed.identity().unwrap_err();
            assert!(why.to_string().contains("does not vouch"), "{why}");
        }
    }

    #[test]
    fn a_fingerprint_returns_as_it_was_written() {
        let print = Fingerprint([0x0a, 1, 2, 3, 4, 5, 6, 0xff]);
        assert_eq!(print.to_string(), "0a01-0203-0405-06ff");
        assert_eq!(Fingerprint::parse(&print.to_string()), Some(print));
        assert_eq!(Fingerprint::parse("0a01"), None);
    }

    #[test]
    fn a_key_is_written_once_and_for_its_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep").join("farm.pem");
        let key = FarmKey::create().unwrap();
        key.write(&path).unwrap();
        #[cfg(unix)]
        {
            let meta = fs::metadata(&path).unwrap();
            let mode = std::os::unix::fs::PermissionsExt::mode(&meta.permissions());
            assert_eq!(mode & 0o777, 0o600);
        }
        let read = Identity::read(&path).unwrap();
        assert_eq!(read.fingerprint(), key.fingerprint());
        let other = FarmKey::create().unwrap();
        assert!(matches!(other.write(&path), Err(KeyError::Exists { .. })));
        assert_eq!(
            Identity::read(&path).unwrap().fingerprint(),
            key.fingerprint()
        );
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_lent_holds_no_authority() {
        let key = FarmKey::create().unwrap();
        let lent = key.lend(3).unwrap();
        assert!(FarmKey::from_pem(&lent).is_err());
        let identity = Identity::from_pem(&lent).unwrap();
        assert_eq!(identity.fingerprint(), key.fingerprint());
        identity.server().unwrap();
        identity.client().unwrap();
    }

    #[test]
    fn what_is_no_key_is_refused_with_its_reason() {
        for text in ["", "hello", "-----BEGIN CERTIFICATE-----\nAAAA"] {
            assert!(Identity::from_pem(text).is_err(), "{text:?}");
        }
    }
}
