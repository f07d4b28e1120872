"""No form of a secret in an address, a connection string or a header is shown."""

from urllib.parse import quote

import pytest

from qamoe.errors import UserError
from qamoe.tracking.mlflow_store import connect, masked, reason

FORMS = [
    "postgresql://ann:{}@db.example/mlflow",
    "postgresql+psycopg2://ann:{}@db.example:5432/mlflow",
    "mysql+pymysql://ann:{}@db.example/mlflow?charset=utf8",
    "mssql+pyodbc://ann:{}@db.example/mlflow?driver=ODBC+Driver+18",
    "https://ann:{}@git.example/team/project.git",
    "https://{}@git.example/team/project.git",
    "https://{}:x-oauth-basic@git.example/team/project.git",
    "https://x-access-token:{}@git.example/team.git",
    "ssh://ann:{}@git.example:22/team.git",
    "redis://:{}@cache.example:6379/0",
    "http://ann:{}@[::1]:5000",
    "s3://id:{}@bucket.example/folder",
    "http://id:{}@minio.example:9000",
    "webdavs://ann:{}@files.example/remote",
    "http://prefect:{}@server.example:4200/api",
    "sqlite:///file.db?key={}",
    "https://host.example/x?password={}",
    "https://host.example/x?a=1&passwd={}&b=2",
    "https://host.example/x?pwd={}",
    "https://host.example/x?pass={}",
    "https://host.example/x?token={}",
    "https://host.example/x?access_token={}",
    "https://host.example/x?secret={}",
    "https://host.example/x?client_secret={}&z=1",
    "https://host.example/x?key={}",
    "https://host.example/x?api_key={}",
    "https://host.example/x?apikey={}",
    "https://host.example/x?access_key={}",
    "https://host.example/x?auth={}",
    "https://host.example/x?authorization={}",
    "https://host.example/x?sig={}",
    "https://bucket.example/x?X-Amz-Credential={}&X-Amz-Date=1",
    "https://bucket.example/x?X-Amz-Date=1&X-Amz-Signature={}",
    "https://bucket.example/x?X-Amz-Security-Token={}",
    "host=db.example user=ann password={} dbname=x",
    "host=db.example password = '{}' dbname=x",
    "Driver={{ODBC Driver 18}};Server=db.example;UID=ann;PWD={};Encrypt=yes",
    "Driver={{ODBC Driver 18}};Server=db.example;UID=ann;PWD={{{}}}",
    "Authorization: Bearer {}",
    "'Authorization': 'Basic {}'",
    '{{"password": "{}", "user": "ann"}}',
    "AWS_SECRET_ACCESS_KEY={}",
]
SECRET = "planted"
# Of a password in an address; the parts of those in a header or a bare word have no blanks.
PASSWORDS = (
    "planted",
    "planted@planted",
    "planted/planted",
    "planted:planted#planted",
    "planted%40planted",
    "p?planted",
)


@pytest.mark.parametrize("form", FORMS)
def test_a_secret_is_masked_alone_and_within_a_message(form: str) -> None:
    for password in PASSWORDS:
        shown = form.format(password)
        for text in (shown, f"cannot open {shown} (timeout)", f"a {shown}\nb", f"x {shown} and {shown}"):
            assert SECRET not in masked(text), masked(text)


@pytest.mark.parametrize("form", [form for form in FORMS if ":{}@" in form] + FORMS[36:38])
def test_a_password_may_contain_blanks(form: str) -> None:
    assert SECRET not in masked(form.format("planted and planted"))


def test_a_secret_is_masked_before_the_message_is_cut() -> None:
    for length in range(150, 205):
        error = ValueError("x" * length + " postgresql://ann:planted-planted@db.example/mlflow cannot be opened")
        assert SECRET not in reason(error)


@pytest.mark.integration
@pytest.mark.parametrize("password", ["planted/x", "planted#x", "a?planted", "planted%2Fplanted", "planted planted"])
@pytest.mark.parametrize("scheme", ["http", "mssql", "nonsense"])
def test_a_part_that_an_error_quotes_is_masked(scheme: str, password: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{scheme}://ann:{password}@127.0.0.1:1/mlflow")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError) as refusal:
        connect()
    assert SECRET not in str(refusal.value)
    assert "MLFLOW_TRACKING_URI" in str(refusal.value)


def test_a_secret_of_the_environment_is_masked_in_any_form(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "planted or/planted"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    monkeypatch.setenv("QAMOE_STUDY_URL", "postgresql://host/x?password=planted%20too&connect_timeout=3")
    for text in (secret, quote(secret), "Port could not be cast to integer value as 'planted'", "planted too"):
        assert SECRET not in masked(text)


@pytest.mark.parametrize(
    "text",
    [
        "http://127.0.0.1:5000",
        "sqlite:////srv/mlflow.db",
        "no such table: alembic_version",
        "HTTPConnectionPool(host='127.0.0.1', port=1): Max retries exceeded with url: /api/2.0/mlflow",
        "unknown key models.qamoe.hiden",
    ],
)
def test_what_is_no_secret_is_shown(text: str) -> None:
    assert masked(text) == text
