<?php
/*
 * `php -d extension=swoole swoole.php CONFIGURATION`: the sync flow on Swoole's HTTP server: one worker, a coroutine a request,
 * PDO (pgsql) made coroutine by Swoole's hooks, pooled; pooled keep-alive HTTP clients. Each of the two transactions is one
 * statement, so that it is one round trip and one commit: the fastest way to write this flow without batching payments together.
 */

declare(strict_types=1);

use Swoole\Coroutine;
use Swoole\Coroutine\Channel;
use Swoole\Coroutine\Http\Client;

const DATABASE_CONNECTIONS = 16;
const PSP_SECONDS = 20.0;

const ACCEPT = <<<'SQL'
WITH keys AS (
    INSERT INTO idempotency_keys (merchant_id, key, fingerprint, payment_id, in_flight_until, created_at)
    VALUES (:merchant_id::uuid, :key, decode(:fingerprint, 'hex'), :payment_id::uuid, now() + interval '30 seconds', now())
    ON CONFLICT (merchant_id, key) DO NOTHING
    RETURNING merchant_id, payment_id, key
), payments AS (
    INSERT INTO payment_requests (
        merchant_id, id, psp_account_id, operation_id, order_id, amount_minor, currency, status, version, idempotency_key,
        expires_at, due_at, created_at, updated_at, is_sync)
    SELECT merchant_id, payment_id, :account_id::uuid, :operation_id::uuid, :order_id, :amount::bigint, :currency, 'PENDING', 1,
           key, now() + interval '60 seconds', now() + interval '60 seconds', now(), now(), true
      FROM keys
), operations AS (
    INSERT INTO psp_operations (
        merchant_id, id, payment_id, psp_account_id, kind, amount_minor, currency, state, first_sent_at)
    SELECT merchant_id, :operation_id::uuid, payment_id, :account_id::uuid, 'charge', :amount::bigint, :currency, 'SENT', now()
      FROM keys
), logs AS (
    INSERT INTO payment_logs (merchant_id, id, payment_id, version, source, kind, from_status, to_status, created_at)
    SELECT merchant_id, :log_id::uuid, payment_id, 1, 'create', 'accepted', NULL, 'PENDING', now() FROM keys
)
SELECT payment_id FROM keys
SQL;

const CAPTURE = <<<'SQL'
WITH applied AS (
    UPDATE payment_requests
       SET status = 'SUCCEEDED', version = 2, reference = :reference, captured_minor = amount_minor, due_at = NULL,
           updated_at = now()
     WHERE merchant_id = :merchant_id::uuid AND id = :payment_id::uuid AND version = 1
    RETURNING merchant_id, id, operation_id, amount_minor, currency, idempotency_key
), logs AS (
    INSERT INTO payment_logs (
        merchant_id, id, payment_id, version, source, kind, from_status, to_status, reference, created_at)
    SELECT merchant_id, :log_id::uuid, id, 2, 'create', 'captured', 'PENDING', 'SUCCEEDED', :reference, now() FROM applied
), operations AS (
    UPDATE psp_operations o SET state = 'DONE' FROM applied a
     WHERE o.merchant_id = a.merchant_id AND o.payment_id = a.id AND o.id = a.operation_id
), sequences AS (
    INSERT INTO merchant_sequences AS s (merchant_id, last_seq, last_ledger_seq)
    SELECT merchant_id, 1, 2 FROM applied
    ON CONFLICT (merchant_id) DO UPDATE SET last_seq = s.last_seq + 1, last_ledger_seq = s.last_ledger_seq + 2
    RETURNING s.merchant_id, s.last_seq, s.last_ledger_seq
), told AS (
    INSERT INTO events (merchant_id, seq, id, type, payment_id, data, created_at)
    SELECT a.merchant_id, s.last_seq, :event_id::uuid, 'payment.succeeded', a.id, :body, now()
      FROM applied a JOIN sequences s USING (merchant_id)
    RETURNING merchant_id, seq
), replies AS (
    UPDATE idempotency_keys k SET reply_status = 201, reply_body = :body, in_flight_until = now()
      FROM applied a WHERE k.merchant_id = a.merchant_id AND k.key = a.idempotency_key
), entries AS (
    INSERT INTO ledger_entries (merchant_id, seq, transfer_id, kind, account, payment_id, currency, amount_minor, created_at)
    SELECT a.merchant_id, s.last_ledger_seq - 1 + t.number, a.id, 'charge', t.account, a.id, a.currency, t.sign * a.amount_minor,
           now()
      FROM applied a JOIN sequences s USING (merchant_id),
           (VALUES (:receivable, -1, 0), ('merchant_available', 1, 1)) AS t (account, sign, number)
), wallet AS (
    INSERT INTO wallets AS w (merchant_id, currency, kind, balance_minor, updated_at)
    SELECT merchant_id, currency, 'merchant_available', amount_minor, now() FROM applied
    ON CONFLICT (merchant_id, currency, kind)
    DO UPDATE SET balance_minor = w.balance_minor + excluded.balance_minor, updated_at = excluded.updated_at
), sent AS (
    INSERT INTO deliveries (merchant_id, endpoint_id, event_seq, state, is_ordered, attempts, due_at, created_at, updated_at)
    SELECT t.merchant_id, e.id, t.seq, 'PENDING', false, 1, now() + interval '30 seconds', now(), now()
      FROM told t JOIN webhook_endpoints e ON e.merchant_id = t.merchant_id AND e.enabled
    RETURNING endpoint_id, event_seq
)
SELECT s.event_seq, e.id, e.url
  FROM applied a
  LEFT JOIN sent s ON true
  LEFT JOIN webhook_endpoints e ON e.merchant_id = a.merchant_id AND e.id = s.endpoint_id
SQL;

const DELIVERED = <<<'SQL'
UPDATE deliveries SET state = 'DELIVERED', due_at = NULL, last_status = ?, updated_at = now()
 WHERE merchant_id = ? AND endpoint_id = ? AND event_seq = ? AND state = 'PENDING'
SQL;

function uuid7(): string
{
    $bytes = substr(pack('J', (int) (microtime(true) * 1000)), 2) . random_bytes(10);
    $bytes[6] = chr((ord($bytes[6]) & 0x0f) | 0x70);
    $bytes[8] = chr((ord($bytes[8]) & 0x3f) | 0x80);
    $hex = bin2hex($bytes);
    return substr($hex, 0, 8) . '-' . substr($hex, 8, 4) . '-' . substr($hex, 12, 4) . '-' . substr($hex, 16, 4) . '-' . substr($hex, 20);
}

/* A connection with its statements prepared once. */
final class Database
{
    private PDO $pdo;
    /** @var array<string, PDOStatement> */
    private array $statements = [];

    public function __construct(string $dsn, string $user, string $password)
    {
        $this->pdo = new PDO($dsn, $user, $password, [PDO::ATTR_ERRMODE => PDO::ERRMODE_EXCEPTION]);
        // Planning such a statement takes PostgreSQL longer than carrying it out.
        $this->pdo->exec('SET plan_cache_mode = force_generic_plan; SET jit = off; SET enable_seqscan = off');
    }

    /** @param array<int|string, mixed> $values */
    public function run(string $sql, array $values): PDOStatement
    {
        $statement = $this->statements[$sql] ??= $this->pdo->prepare($sql);
        $statement->execute($values);
        return $statement;
    }
}

/* A pool of anything, filled as needed up to a bound. */
final class Pool
{
    private Channel $idle;
    private int $made = 0;

    public function __construct(private Closure $make, private int $most)
    {
        $this->idle = new Channel($most);
    }

    public function take(): mixed
    {
        if ($this->idle->isEmpty() && $this->made < $this->most) {
            $this->made++;
            return ($this->make)();
        }
        return $this->idle->pop();
    }

    public function give(mixed $one): void
    {
        $this->idle->push($one);
    }
}

final class Server
{
    private Pool $databases;
    /** @var array<string, Pool> */
    private array $clients = [];
    /** @var array<string, string> */
    private array $merchants = [];

    /** @param array<string, mixed> $configuration */
    public function __construct(private array $configuration)
    {
        [$dsn, $user, $password] = self::dsn($configuration['database_url']);
        $this->databases = new Pool(fn () => new Database($dsn, $user, $password), DATABASE_CONNECTIONS);
    }

    /** @return array{string, string, string} */
    private static function dsn(string $url): array
    {
        preg_match('~^postgresql://([^:]+):([^@]*)@([^/]*)/([^?]+)\??(.*)$~', $url, $found);
        parse_str($found[5], $query);
        $host = $query['host'] ?? explode(':', $found[3])[0];
        $port = $query['port'] ?? (explode(':', $found[3])[1] ?? '5432');
        return ["pgsql:host={$host};port={$port};dbname={$found[4]}", urldecode($found[1]), urldecode($found[2])];
    }

    public function handle(Swoole\Http\Request $request, Swoole\Http\Response $response): void
    {
        $response->header('Content-Type', 'application/json');
        $merchantId = $this->merchantOf(substr($request->header['authorization'] ?? '', 7));
        $key = $request->header['idempotency-key'] ?? null;
        if ($merchantId === null || $key === null) {
            $response->status($merchantId === null ? 401 : 400);
            $response->end('{}');
            return;
        }
        $raw = (string) $request->getContent();
        $wanted = json_decode($raw, true, 8, JSON_THROW_ON_ERROR);
        $paymentId = uuid7();
        $operationId = uuid7();
        $accepted = $this->query(ACCEPT, [
            'merchant_id' => $merchantId,
            'key' => $key,
            'fingerprint' => hash('sha256', "POST /v1/payments\n" . $raw),
            'payment_id' => $paymentId,
            'account_id' => $this->configuration['psp_account_id'],
            'operation_id' => $operationId,
            'order_id' => $wanted['order_id'],
            'amount' => $wanted['amount'],
            'currency' => $wanted['currency'],
            'log_id' => uuid7(),
        ]);
        if ($accepted === []) {
            $this->replay($response, $merchantId, $key, $raw);
            return;
        }
        $reference = $this->charge($wanted, $merchantId, $paymentId, $operationId);
        $body = json_encode([
            'id' => 'pay_' . str_replace('-', '', $paymentId),
            'order_id' => $wanted['order_id'],
            'amount' => $wanted['amount'],
            'currency' => $wanted['currency'],
            'status' => 'SUCCEEDED',
            'success' => 1,
            'captured_amount' => $wanted['amount'],
            'refunded_amount' => 0,
            'psp_reference' => $reference,
            'created_at' => gmdate('Y-m-d\TH:i:s\Z'),
        ], JSON_THROW_ON_ERROR);
        $eventId = uuid7();
        $sent = $this->query(CAPTURE, [
            'merchant_id' => $merchantId,
            'payment_id' => $paymentId,
            'reference' => $reference,
            'log_id' => uuid7(),
            'event_id' => $eventId,
            'body' => $body,
            'receivable' => 'psp_receivable:' . str_replace('-', '', $this->configuration['psp_account_id']),
        ]);
        if ($sent === []) {
            throw new RuntimeException('the payment has changed meanwhile');
        }
        $response->status(201);
        $response->end($body);
        foreach ($sent as [$seq, $endpointId, $url]) {
            if ($url === null) {
                continue; // the merchant has no endpoint
            }
            Coroutine::create(fn () => $this->deliver($merchantId, $endpointId, $url, (int) $seq, $eventId, $body));
        }
    }

    private function merchantOf(string $key): ?string
    {
        if (!isset($this->merchants[$key])) {
            $sql = "SELECT merchant_id FROM api_keys WHERE secret_sha256 = decode(?, 'hex') AND revoked_at IS NULL";
            $rows = $this->query($sql, [hash('sha256', $key)]);
            if ($rows === []) {
                return null;
            }
            $this->merchants[$key] = $rows[0][0];
        }
        return $this->merchants[$key];
    }

    private function replay(Swoole\Http\Response $response, string $merchantId, string $key, string $raw): void
    {
        $sql = "SELECT encode(fingerprint, 'hex'), reply_status, reply_body FROM idempotency_keys WHERE merchant_id = ? AND key = ?";
        [$fingerprint, $status, $body] = $this->query($sql, [$merchantId, $key])[0];
        $isSame = $fingerprint === hash('sha256', "POST /v1/payments\n" . $raw);
        $response->status($isSame ? (int) ($status ?? 409) : 422);
        $response->end($isSame ? (string) ($body ?? '{}') : '{}');
    }

    /** @param array<string, mixed> $wanted */
    private function charge(array $wanted, string $merchantId, string $paymentId, string $operationId): string
    {
        $asked = json_encode([
            'amount_minor' => $wanted['amount'],
            'currency' => $wanted['currency'],
            'capture' => 'automatic',
            'merchant_id' => $merchantId,
            'payment_id' => $paymentId,
            'operation_id' => $operationId,
            'token' => $wanted['token'],
        ], JSON_THROW_ON_ERROR);
        $headers = ['Content-Type' => 'application/json', 'Idempotency-Key' => $operationId];
        [$status, $answer] = $this->post($this->configuration['psp_url'] . '/v1/intents', $asked, $headers);
        $intent = json_decode($answer, true, 8, JSON_THROW_ON_ERROR);
        $isOurs = $intent['operation_id'] === $operationId && $intent['captured_minor'] === $wanted['amount'];
        if ($status !== 200 || !$isOurs || $intent['status'] !== 'captured') {
            throw new RuntimeException("the PSP answered {$status}");
        }
        return $intent['id'];
    }

    private function deliver(string $merchantId, string $endpointId, string $url, int $seq, string $eventId, string $body): void
    {
        $messageId = 'evt_' . str_replace('-', '', $eventId);
        $time = time();
        $at = gmdate('Y-m-d\TH:i:s\Z', $time);
        $message = "{\"id\":\"{$messageId}\",\"type\":\"payment.succeeded\",\"seq\":{$seq},\"timestamp\":\"{$at}\",\"data\":{$body}}";
        $secret = base64_decode(substr($this->configuration['webhook_secret'], 6));
        $signature = base64_encode(hash_hmac('sha256', "{$messageId}.{$time}.{$message}", $secret, true));
        [$status] = $this->post($url, $message, [
            'Content-Type' => 'application/json',
            'webhook-id' => $messageId,
            'webhook-timestamp' => (string) $time,
            'webhook-signature' => "v1,{$signature}",
        ]);
        if ($status >= 200 && $status < 300) {
            $this->query(DELIVERED, [$status, $merchantId, $endpointId, $seq]);
        }
    }

    /**
     * @param array<string, string> $headers
     * @return array{int, string}
     */
    private function post(string $url, string $body, array $headers): array
    {
        $parts = parse_url($url);
        $origin = "{$parts['host']}:{$parts['port']}";
        $make = function () use ($parts) {
            $client = new Client($parts['host'], $parts['port']);
            $client->set(['timeout' => PSP_SECONDS, 'keep_alive' => true]);
            return $client;
        };
        $pool = $this->clients[$origin] ??= new Pool($make, $this->configuration['connections_max']);
        $client = $pool->take();
        try {
            $client->setHeaders($headers + ['Host' => $origin]);
            $client->post($parts['path'] ?? '/', $body);
            return [$client->statusCode, (string) $client->body];
        } finally {
            $pool->give($client);
        }
    }

    /**
     * @param array<int|string, mixed> $values
     * @return list<list<mixed>>
     */
    private function query(string $sql, array $values): array
    {
        $database = $this->databases->take();
        try {
            return $database->run($sql, $values)->fetchAll(PDO::FETCH_NUM);
        } finally {
            $this->databases->give($database);
        }
    }
}

$configuration = json_decode((string) file_get_contents($argv[1]), true, 8, JSON_THROW_ON_ERROR);
$http = new Swoole\Http\Server('127.0.0.1', $configuration['port'], SWOOLE_BASE);
$http->set([
    'worker_num' => $configuration['workers'],
    'enable_coroutine' => true,
    'max_coroutine' => 100000,
    'hook_flags' => SWOOLE_HOOK_TCP | SWOOLE_HOOK_UNIX | SWOOLE_HOOK_PDO_PGSQL | SWOOLE_HOOK_SLEEP,
    'log_level' => SWOOLE_LOG_WARNING,
    'open_tcp_nodelay' => true,
    'http_compression' => false,
    'backlog' => 4096,
]);
$server = null;
$http->on('workerStart', function () use (&$server, $configuration) {
    $server = new Server($configuration);
});
$http->on('request', function ($request, $response) use (&$server) {
    try {
        $server->handle($request, $response);
    } catch (Throwable $error) {
        fwrite(STDERR, $error->getMessage() . "\n");
        $response->status(500);
        $response->end('{}');
    }
});
$http->start();
