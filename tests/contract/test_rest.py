"""The adapter for any JSON API, described by configuration alone, against the simulators of two different vendors."""

from tests.contract.suite import AdapterSuite


class TestRestSpeaksHubSpot(AdapterSuite):
    """With the adapter's own example: one request for a batch, results and failures in lists of their own, by key."""

    name = "rest"
    simulator = "hubspot"
    text_field = "leadsync_answers"
    good = {"firstname": "Li Lei", "city": "Berlin"}
    bad = {"email": "no address"}
    renews = False


SALESFORCE = """
adapter: rest
object: Lead
external_id_field: Leadsync_Id__c
on_delete: delete
fields:
  LastName: {column: name, transform: trim, default: Unknown, max_length: 80}
  Company: {column: appkey, max_length: 255}
  Email: {column: email, transform: [trim, lower]}
  Phone: {column: phone, max_length: 40}
  Uid__c: {column: uid, transform: integer}
  Updated_At__c: {column: update_time, transform: iso8601}
  Answers__c: answers
settings:
  time_precision: 1
  auth: {scheme: client_credentials, token_path: /services/oauth2/token}
  upsert:
    method: PATCH
    path: /services/data/v62.0/composite/sobjects/{object}/{external_id_field}
    max_batch: 200
    body: {allOrNone: false, records: "{leads}"}
    each: {attributes: {type: "{object}"}, "...": "{fields}", "{external_id_field}": "{external_id}"}
    results: &results
      {id: id, success: success, created: created, code: errors.*.statusCode, message: errors.0.message,
       field: errors.0.fields.0}
  delete:
    method: DELETE
    path: /services/data/v62.0/composite/sobjects
    max_batch: 200
    query: {ids: "{ids}", allOrNone: "false"}
    results: *results
  fetch:
    method: GET
    path: /services/data/v62.0/query
    max_batch: 100
    query:
      q: "SELECT Id, {names} FROM {object} WHERE {external_id_field} IN ({external_ids:backslash})"
    items: records
    key: "{external_id_field}"
    id: Id
    total: totalSize
  check:
    method: GET
    path: /services/data/v62.0/sobjects/{object}/describe
    fields: fields
    unique: [externalId, unique]
    writable: updateable
  errors:
    code: "*.errorCode"
    message: 0.message
    field: 0.fields.0
    transient: [UNABLE_TO_LOCK_ROW, DUPLICATE_VALUE, SERVER_UNAVAILABLE, QUERY_TIMEOUT, UNKNOWN_EXCEPTION]
    setup: [INVALID_FIELD, INVALID_TYPE, NOT_FOUND]
    quota: REQUEST_LIMIT_EXCEEDED
    gone: [ENTITY_IS_DELETED, INVALID_CROSS_REFERENCE_KEY]
"""


class TestRestSpeaksSalesforce(AdapterSuite):
    """With a login, results by position, a query with the ids in its text, and a delete without a body."""

    name = "rest"
    simulator = "salesforce"
    example = SALESFORCE
    many = 2_000  # the other kind has them all
    text_field = "Answers__c"
    good = {"LastName": "Li Lei", "Company": "ASDAD"}
    bad = {"Email": "no address"}
