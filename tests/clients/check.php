<?php
// The sibling of check.py for PHP; see there.
declare(strict_types=1);

final class Check
{
    public const UNICODE = "片山 葵 · žluťoučký · 𝄞🐘 · \u{202e}عربي";
    public static stdClass $parameters;

    public static function equal(mixed $got, mixed $wanted): void
    {
        if ($got !== $wanted) {
            throw new RuntimeException(json_encode($got) . ' instead of ' . json_encode($wanted));
        }
    }

    /** Number, length and hash of many strings. */
    public static function summary(iterable $values): array
    {
        $digest = hash_init('sha256');
        [$rows, $size] = [0, 0];
        foreach ($values as $value) {
            hash_update($digest, $value);
            $rows++;
            $size += strlen($value);
        }
        self::equal([$rows, $size], [100_000, 100_000_000]);
        return [$rows, $size, hash_final($digest)];
    }

    public static function until(callable $condition): void
    {
        $deadline = microtime(true) + 30;
        while (!$condition()) {
            self::equal(microtime(true) < $deadline, true);
            usleep(20_000);
        }
    }

    /** Each check gets a connection of its own. */
    public static function run(string $version, callable $connect, array $checks): void
    {
        self::report('version', ['got' => $version]);
        foreach ($checks as $name => $check) {
            if (isset(self::$parameters->only) && self::$parameters->only !== $name) {
                continue;
            }
            try {
                self::report($name, ['got' => $check($connect())]);
            } catch (Throwable $error) {
                self::report($name, ['failed' => get_class($error) . ': ' . $error->getMessage()]);
            }
        }
    }

    private static function report(string $check, array $what): void
    {
        echo json_encode(['check' => $check, ...$what], JSON_UNESCAPED_UNICODE | JSON_THROW_ON_ERROR), "\n";
    }
}

Check::$parameters = json_decode($argv[1]);
